"""What a person sees: progress on stderr, the result on stdout. What a machine reads: --json."""
