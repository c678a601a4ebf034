"""Scripts that distribute themselves with torch.distributed: one rank of the job runs in this process, its collectives are recorded."""
