"""The Open Inference Protocol: one data plane, which both of its doors, gRPC and REST, ask."""
