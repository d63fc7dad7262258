# Commands rather than addresses: each replacement of a worker has another address, so each command looks it up by tag.

locals {
  region = "--region ${var.aws_region}"
  find = {
    for id, run in local.runs : id =>
    "aws ec2 describe-instances ${local.region} --filters Name=tag:aws:autoscaling:groupName,Values=${run.name} Name=instance-state-name,Values=running"
  }
  address = { for id, find in local.find : id => "$(${find} --query 'Reservations[0].Instances[0].PublicIpAddress' --output text)" }
  session = {
    for id, find in local.find : id =>
    "aws ssm start-session ${local.region} --target \"$(${find} --query 'Reservations[0].Instances[0].InstanceId' --output text)\""
  }

  commands = {
    for id, run in local.runs : id => {
      autoscaling_group_name = run.name
      session_command        = local.session[id]
      ssh_command = (
        var.key_pair_name != null && length(var.allowed_cidrs) > 0
        ? "ssh -i ~/.ssh/${var.key_pair_name}.pem \"ubuntu@${local.address[id]}\""
        : "echo 'SSH is closed: set key_pair_name and allowed_cidrs, or use session_command'"
      )
      journalctl_command      = "${local.session[id]} --document-name AWS-StartInteractiveCommand --parameters 'command=[\"sudo journalctl -f -n 200 -u train-cloud-train -u train-cloud-bootstrap\"]'"
      tensorboard_command     = "${local.session[id]} --document-name AWS-StartPortForwardingSession --parameters 'portNumber=6006,localPortNumber=6006'"
      tensorboard_url_command = length(var.allowed_cidrs) > 0 ? "echo \"http://${local.address[id]}:6006\"" : "echo http://localhost:6006"
      status_command = (
        id == local.pipeline_id ? "train-cloud pipeline status '${var.pipeline_file}' --store ${local.store_url}" :
        "train-cloud status s3://${local.bucket}/${trimsuffix(run.prefix, "/")}"
      )
      scaling_activities_command = "aws autoscaling describe-scaling-activities ${local.region} --auto-scaling-group-name ${run.name} --max-items 5 --query 'Activities[].[StartTime,StatusCode,StatusMessage||Description]' --output table"
      logs_command               = local.logs ? "aws logs tail ${local.region} ${local.log_groups[id]} --since 1h --follow" : "echo 'CloudWatch Logs is off: set cloudwatch_log_days, or use journalctl_command'"
    }
  }

  # The one run's, or a command that says where each run's are.
  command = {
    for name in keys(values(local.commands)[0]) : name => (
      length(local.runs) == 1 ? values(local.commands)[0][name] :
      "echo 'There are ${length(local.runs)} runs here. The one of ${keys(local.runs)[0]}: eval \"$(terraform output -json runs | jq -r .[\\\"${keys(local.runs)[0]}\\\"].${name})\"'"
    )
  }
}

output "runs" {
  description = "For each run id the outputs below, of that run."
  value       = local.commands
}

output "session_command" {
  description = "A shell on the worker, without a key or an open port (needs AWS's session-manager-plugin)."
  value       = local.command.session_command
}

output "ssh_command" {
  description = "A shell over SSH; needs key_pair_name and allowed_cidrs."
  value       = local.command.ssh_command
}

output "journalctl_command" {
  description = "Follow the training's log."
  value       = local.command.journalctl_command
}

output "logs_command" {
  description = "Follow the units' logs in CloudWatch, those of workers that are gone too; needs cloudwatch_log_days."
  value       = local.command.logs_command
}

output "tensorboard_command" {
  description = "Bring the worker's TensorBoard to port 6006 of this machine."
  value       = local.command.tensorboard_command
}

output "tensorboard_url_command" {
  description = "Print TensorBoard's address: the worker's own where allowed_cidrs lets one in, else this machine's, while tensorboard_command runs."
  value       = local.command.tensorboard_url_command
}

output "status_command" {
  description = "How far the run is, or each of several, what it cost and how it ended."
  value       = length(local.runs) == 1 ? local.command.status_command : "train-cloud status ${local.store_url}"
}

output "scaling_activities_command" {
  description = "Why there is no worker: what Auto Scaling tried last, for each run."
  value       = join("; ", [for id in keys(local.runs) : local.commands[id].scaling_activities_command])
}

output "s3_bucket_url" {
  description = "Root of everything stored."
  value       = local.store_url
}

output "autoscaling_group_name" {
  description = "The worker's group; null where there are several."
  value       = length(local.runs) == 1 ? one(values(aws_autoscaling_group.worker)).name : null
}

output "notification_topic_arn" {
  description = "Where the runs' ends and interruptions are announced; null without notification_emails."
  value       = one(aws_sns_topic.runs[*].arn)
}
