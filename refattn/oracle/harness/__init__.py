"""`check_kernel`: one kernel through inputs, options, shapes and identities."""
