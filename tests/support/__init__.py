"""What tests share: made-up models, servers and artifacts."""
