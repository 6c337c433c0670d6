"""The commands: signature, help and exit code here, the work in `madtp_cli.engine`, imported only when called."""
