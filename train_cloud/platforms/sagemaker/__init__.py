"""Training jobs of Amazon SageMaker AI: what is asked of AWS, and what runs in the job."""
