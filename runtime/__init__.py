"""What runs on the device: bundle in, answers out (numpy and OpenCV; never torch)."""
