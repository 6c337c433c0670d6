"""What people read: live progress, reports in the terminal, model cards. Nothing here imports torch."""
