# Commands rather than addresses: each replacement of the worker has another address, so each command looks it up by tag.

locals {
  find     = "aws ec2 describe-instances --region ${var.aws_region} --filters Name=tag:aws:autoscaling:groupName,Values=${local.name} Name=instance-state-name,Values=running"
  instance = "$(${local.find} --query 'Reservations[0].Instances[0].InstanceId' --output text)"
  address  = "$(${local.find} --query 'Reservations[0].Instances[0].PublicIpAddress' --output text)"
  session  = "aws ssm start-session --region ${var.aws_region} --target \"${local.instance}\""
}

output "session_command" {
  description = "A shell on the worker, without a key or an open port (needs AWS's session-manager-plugin)."
  value       = local.session
}

output "ssh_command" {
  description = "A shell over SSH; needs key_pair_name and allowed_cidrs."
  value = (
    var.key_pair_name != null && length(var.allowed_cidrs) > 0
    ? "ssh -i ~/.ssh/${var.key_pair_name}.pem \"ubuntu@${local.address}\""
    : "echo 'SSH is closed: set key_pair_name and allowed_cidrs, or use session_command'"
  )
}

output "journalctl_command" {
  description = "Follow the training's log."
  value       = "${local.session} --document-name AWS-StartInteractiveCommand --parameters 'command=[\"journalctl -f -n 200 -u train-cloud-train -u train-cloud-bootstrap\"]'"
}

output "tensorboard_command" {
  description = "Bring the worker's TensorBoard to port 6006 of this machine."
  value       = "${local.session} --document-name AWS-StartPortForwardingSession --parameters 'portNumber=6006,localPortNumber=6006'"
}

output "tensorboard_url_command" {
  description = "Print TensorBoard's address: the worker's own where allowed_cidrs lets one in, else this machine's, while tensorboard_command runs."
  value       = length(var.allowed_cidrs) > 0 ? "echo \"http://${local.address}:6006\"" : "echo http://localhost:6006"
}

output "status_command" {
  description = "How far the run is, what it cost and how it ended."
  value       = "train-cloud status s3://${local.bucket}/${trimsuffix(local.run_prefix, "/")}"
}

output "scaling_activities_command" {
  description = "Why there is no worker: what Auto Scaling tried last."
  value       = "aws autoscaling describe-scaling-activities --region ${var.aws_region} --auto-scaling-group-name ${local.name} --max-items 5 --query 'Activities[].[StartTime,StatusCode,StatusMessage||Description]' --output table"
}

output "s3_bucket_url" {
  description = "Root of everything stored."
  value       = local.store_url
}

output "autoscaling_group_name" {
  description = "The worker's group."
  value       = aws_autoscaling_group.worker.name
}
