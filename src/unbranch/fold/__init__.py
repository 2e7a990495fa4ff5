"""The compiler on a neutral graph: interpret, plan, verify, report. It knows neither modules' graphs nor ONNX."""
