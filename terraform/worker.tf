# For each run one worker at a time: a group of at most one that replaces an interrupted worker, and a schedule that ends
# it for good.

locals {
  # Also in run.json, for the worker's account of what it costs.
  volume = { type = "gp3", gb = var.root_volume_gb, iops = 3000, throughput = 500 }

  hook     = "final-commit"
  image_id = coalesce(var.ami_id, one(data.aws_ssm_parameter.image[*].insecure_value))
  # A volume cannot be smaller than the snapshot that it is made from.
  image_root_gb = max(0, [
    for mapping in data.aws_ami.image.block_device_mappings : tonumber(mapping.ebs.volume_size)
    if mapping.device_name == data.aws_ami.image.root_device_name && can(tonumber(mapping.ebs.volume_size))
  ]...)

  launched   = { for id, launch in terraform_data.launched : id => launch.output }
  outer_stop = { for id, launched in local.launched : id => timeadd(launched, "${ceil(var.max_runtime_hours * 60) + 30}m") }

  # The whole of /etc/train-cloud/worker.env. No value needs quoting: the variables' validations see to it.
  environment = { for id, run in local.runs : id => merge({
    AWS_REGION                    = var.aws_region
    AWS_DEFAULT_REGION            = var.aws_region
    TRAIN_CLOUD_STORE             = local.store_url
    TRAIN_CLOUD_RUN_ID            = id
    TRAIN_CLOUD_RUN_FILE          = "/etc/train-cloud/run.yaml"
    TRAIN_CLOUD_OVERRIDES         = "/etc/train-cloud/overrides.json"
    TRAIN_CLOUD_STATE_DIR         = "/var/lib/train-cloud"
    TRAIN_CLOUD_CODE              = "/opt/train-cloud/code/user"
    TRAIN_CLOUD_CODE_DIGEST       = run.code_digest
    TRAIN_CLOUD_AUTOSCALING_GROUP = run.name
    TRAIN_CLOUD_MAX_ATTEMPTS      = var.max_attempts
    TRAIN_CLOUD_LAUNCHED_AT       = local.launched[id]
    },
    id == local.pipeline_id ? { TRAIN_CLOUD_FOLDER = "pipelines" } : {},
    local.notifies ? { TRAIN_CLOUD_TOPIC = aws_sns_topic.runs[0].arn } : {},
    local.logs ? { TRAIN_CLOUD_LOG_GROUP = local.log_groups[id] } : {},
  ) }

  user_data = {
    for id, environment in local.environment : id => templatefile("${path.module}/user_data.sh.tftpl", {
      environment = environment
      versions    = file("${local.repository}/bootstrap/versions.env")
      library     = file("${local.repository}/bootstrap/lib.sh")
      tools       = file("${local.repository}/bootstrap/tools.sh")
      ending      = file("${local.repository}/bootstrap/ending.sh")
    })
  }
}

# Kept in the state: the launch is when this run was first applied, not when Terraform last ran.
resource "terraform_data" "launched" {
  for_each = local.runs
  input    = timestamp()

  # Everything of a run depends on its launch.
  depends_on = [terraform_data.experiment, terraform_data.pipeline]

  lifecycle {
    ignore_changes = [input]
  }
}

data "aws_ssm_parameter" "image" {
  count = var.ami_id == null ? 1 : 0
  name  = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
}

data "aws_ami" "image" {
  include_deprecated = true

  filter {
    name   = "image-id"
    values = [local.image_id]
  }

  lifecycle {
    postcondition {
      condition     = self.architecture == "x86_64"
      error_message = "ami_id: ${self.id} is an image for ${self.architecture}; give one for x86_64."
    }
  }
}

resource "aws_launch_template" "worker" {
  for_each                             = local.runs
  name                                 = each.value.name
  image_id                             = data.aws_ami.image.id
  instance_type                        = var.instance_types[0]
  key_name                             = var.key_pair_name
  vpc_security_group_ids               = [aws_security_group.worker[each.key].id]
  instance_initiated_shutdown_behavior = "terminate"
  update_default_version               = true
  user_data                            = base64encode(local.user_data[each.key])

  iam_instance_profile {
    # By name: the provider waits seconds for each of the two, and they may wait together. The group waits for both.
    name = each.value.role
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = data.aws_ami.image.root_device_name

    ebs {
      volume_type           = local.volume.type
      volume_size           = local.volume.gb
      iops                  = local.volume.iops
      throughput            = local.volume.throughput
      encrypted             = true
      kms_key_id            = var.kms_key_arn
      delete_on_termination = true
    }
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume"]
    content {
      resource_type = tag_specifications.value
      tags          = { Name = each.value.name, "train-cloud" = var.project_name, "train-cloud-run" = each.key }
    }
  }

  # Spot options do not belong here: EC2 refuses them together with the group's mixed instances policy.

  lifecycle {
    # A newer image must not replace a template in mid-run.
    ignore_changes = [image_id]

    precondition {
      condition     = length(base64encode(local.user_data[each.key])) <= 4 * ceil(16384 / 3)
      error_message = "The user-data is larger than EC2's 16 KB (16384 bytes)."
    }

    # After: by then it is known whether this template has that image or an earlier one.
    postcondition {
      condition     = self.image_id != data.aws_ami.image.id || var.root_volume_gb >= local.image_root_gb
      error_message = "root_volume_gb: ${var.root_volume_gb} GB is less than the ${local.image_root_gb} GB of the image ${data.aws_ami.image.id}, from which no instance would start; give at least ${local.image_root_gb}."
    }
  }
}

resource "aws_autoscaling_group" "worker" {
  for_each                  = local.runs
  name                      = each.value.name
  min_size                  = 0
  max_size                  = 1
  desired_capacity          = 1
  vpc_zone_identifier       = local.subnet_ids
  capacity_rebalance        = false
  suspended_processes       = ["AZRebalance"]
  wait_for_capacity_timeout = "0"

  mixed_instances_policy {
    instances_distribution {
      # There is no falling back by itself: with 0 and 0 a group that finds no spot capacity waits for some.
      on_demand_base_capacity                  = 0
      on_demand_percentage_above_base_capacity = var.use_spot ? 0 : 100
      spot_allocation_strategy                 = "price-capacity-optimized"
    }

    launch_template {
      launch_template_specification {
        launch_template_id = aws_launch_template.worker[each.key].id
        version            = aws_launch_template.worker[each.key].latest_version
      }

      dynamic "override" {
        for_each = var.instance_types
        content {
          instance_type = override.value
        }
      }
    }
  }

  # Part of the group, so that it is still there when `terraform destroy` ends the last worker. A spot interruption gives
  # the same two minutes.
  initial_lifecycle_hook {
    name                 = local.hook
    lifecycle_transition = "autoscaling:EC2_INSTANCE_TERMINATING"
    heartbeat_timeout    = 120
    default_result       = "CONTINUE"
  }

  tag {
    key                 = "train-cloud-run"
    value               = each.key
    propagate_at_launch = true
  }

  lifecycle {
    # The worker sets it to 0 when the run has ended; a later apply must not start it again.
    ignore_changes = [desired_capacity]
  }

  # The first boot needs all of this.
  depends_on = [
    aws_iam_instance_profile.worker,
    aws_iam_role_policy.session,
    aws_iam_role_policy.worker,
    aws_kms_grant.autoscaling,
    aws_s3_object.code,
    aws_s3_object.code_sums,
    aws_s3_object.experiment,
    aws_s3_object.overrides,
    aws_s3_object.run,
    aws_s3_object.run_file,
    aws_vpc_security_group_egress_rule.everywhere,
  ]
}

# The money stops from outside too. Hourly: a worker that somebody starts again after the limit ends within the hour.
resource "aws_autoscaling_schedule" "stop" {
  for_each               = local.runs
  autoscaling_group_name = aws_autoscaling_group.worker[each.key].name
  scheduled_action_name  = "stop-at-limit"
  # -1: as it is
  min_size         = -1
  max_size         = -1
  desired_capacity = 0
  recurrence       = formatdate("m '* * * *'", local.outer_stop[each.key])
  # From the limit on AWS reports the next hour in the place of the first, and would refuse a time that is past.
  start_time = timecmp(plantimestamp(), local.outer_stop[each.key]) < 0 ? formatdate("YYYY-MM-DD'T'hh:mm:00'Z'", local.outer_stop[each.key]) : null
}
