"""What an untrained network is worth: tangent kernels, condition numbers, linear regions."""
