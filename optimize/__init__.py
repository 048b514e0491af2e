"""What shrinks and compiles: export, quantize, build (onnx; torch only in export.py)."""
