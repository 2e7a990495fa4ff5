"""What is wrong with a model file, in one line."""


class OnnxError(ValueError):
    """This ONNX model cannot be read, folded or written; the message says what is wrong, where, and what to do."""
