"""What is decided with volume and network open: survey, precision, overlap, identity, the job."""
