"""The gRPC face: messages, the code that protoc makes of them, and calls as requests of the HTTP face."""
