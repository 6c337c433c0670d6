"""Compressed models as files that other runtimes execute: ONNX, torch.export, OpenVINO."""
