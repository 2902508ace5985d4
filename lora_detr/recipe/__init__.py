"""What composes the parts: the run's configuration, optimisation, deployment settings, branch counts and loaders."""
