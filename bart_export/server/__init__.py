"""TensorFlow Serving's REST and gRPC interface in front of what this package exports."""
