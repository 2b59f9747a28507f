"""A sweep's runs, and where they are trained: in this process, by a worker process a device, or on a cluster."""
