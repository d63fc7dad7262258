# For the section `sagemaker:` of a run file, and for the commands that push the image.

output "role_arn" {
  description = "sagemaker.role in a run file."
  value       = aws_iam_role.job.arn
}

output "repository_url" {
  description = "sagemaker.image in a run file, with a colon and the tag that was pushed."
  value       = aws_ecr_repository.image.repository_url
}

output "store" {
  description = "--store of train-cloud launch."
  value       = local.store
}

output "subnets" {
  description = "sagemaker.subnets in a run file."
  value       = var.subnet_ids
}

output "security_groups" {
  description = "sagemaker.security_groups in a run file."
  value       = aws_security_group.job[*].id
}

output "login_command" {
  description = "Lets docker, or podman in its place, push to the repository."
  value       = "aws ecr get-login-password --region ${var.aws_region} | docker login --username AWS --password-stdin ${split("/", aws_ecr_repository.image.repository_url)[0]}"
}

output "topic_arn" {
  description = "Where the ends of jobs are announced; null without notification_emails."
  value       = one(aws_sns_topic.jobs[*].arn)
}
