"""Nets as ONNX models."""
