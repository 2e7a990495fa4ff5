"""Detection: data, training, validation, prediction and export of YOLOv5 networks."""
