# What the module makes of its variables, without AWS: the provider is a mock, everything else is real.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  run_file = "tests/run.yaml"
}

run "worker" {
  assert {
    condition     = aws_autoscaling_group.worker.name == "train-cloud-tftest-1"
    error_message = "The group's name must contain the run_id: a new run needs a new worker."
  }
  assert {
    condition = (
      aws_autoscaling_group.worker.min_size == 0 &&
      aws_autoscaling_group.worker.max_size == 1 &&
      aws_autoscaling_group.worker.desired_capacity == 1 &&
      aws_autoscaling_group.worker.capacity_rebalance == false &&
      aws_autoscaling_group.worker.wait_for_capacity_timeout == "0" &&
      aws_autoscaling_group.worker.suspended_processes == toset(["AZRebalance"])
    )
    error_message = "Never two workers at once, and no failed apply for lack of spot capacity."
  }
  assert {
    condition = (
      aws_autoscaling_group.worker.mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 0 &&
      aws_autoscaling_group.worker.mixed_instances_policy[0].instances_distribution[0].spot_allocation_strategy == "price-capacity-optimized" &&
      aws_autoscaling_group.worker.mixed_instances_policy[0].launch_template[0].override[*].instance_type == tolist(var.instance_types) &&
      aws_autoscaling_group.worker.mixed_instances_policy[0].launch_template[0].launch_template_specification[0].version == "7"
    )
    error_message = "Spot, of all the types, from the newest template."
  }
  assert {
    condition     = length(aws_launch_template.worker.instance_market_options) == 0
    error_message = "EC2 refuses spot options in the template of a mixed instances policy."
  }
  assert {
    condition = anytrue([
      for hook in aws_autoscaling_group.worker.initial_lifecycle_hook :
      hook.lifecycle_transition == "autoscaling:EC2_INSTANCE_TERMINATING" && hook.heartbeat_timeout == 120 && hook.default_result == "CONTINUE"
    ])
    error_message = "Scale-in must give the two minutes that a spot interruption gives."
  }
  assert {
    condition = (
      aws_launch_template.worker.metadata_options[0].http_tokens == "required" &&
      aws_launch_template.worker.metadata_options[0].http_put_response_hop_limit == 1 &&
      aws_launch_template.worker.block_device_mappings[0].device_name == "/dev/sda1" &&
      aws_launch_template.worker.block_device_mappings[0].ebs[0].encrypted == "true" &&
      aws_launch_template.worker.block_device_mappings[0].ebs[0].volume_size == 150 &&
      aws_launch_template.worker.block_device_mappings[0].ebs[0].throughput == 500
    )
    error_message = "IMDSv2 only, one hop; an encrypted root volume that is fast enough."
  }
  assert {
    condition     = aws_launch_template.worker.instance_initiated_shutdown_behavior == "terminate"
    error_message = "A worker that can only power itself off must not stay behind, stopped."
  }
  assert {
    condition     = length(aws_launch_template.worker.user_data) < 21848
    error_message = "User-data must fit into 16 KB."
  }
  assert {
    condition     = strcontains(base64decode(aws_launch_template.worker.user_data), "\nTRAIN_CLOUD_STORE=s3://train-cloud-123456789012-us-east-1\n")
    error_message = "User-data must say where the run is stored."
  }
  assert {
    condition     = strcontains(base64decode(aws_launch_template.worker.user_data), "\nTRAIN_CLOUD_CODE_DIGEST=${sha256(aws_s3_object.code_sums.content)}\n")
    error_message = "User-data must pin the code by the digest of SHA256SUMS."
  }
  assert {
    condition = (
      aws_autoscaling_schedule.stop.desired_capacity == 0 &&
      aws_autoscaling_schedule.stop.start_time == formatdate("YYYY-MM-DD'T'hh:mm:00'Z'", timeadd(terraform_data.launched.output, "24h30m")) &&
      aws_autoscaling_schedule.stop.recurrence == "${formatdate("m", timeadd(terraform_data.launched.output, "30m"))} * * * *"
    )
    error_message = "The group must go to 0 at the limit plus 30 minutes, and each hour after that."
  }
}

run "storage" {
  assert {
    condition     = contains(keys(aws_s3_object.code), "user/my_env.py") && !contains(keys(aws_s3_object.code), "user/data/big.txt")
    error_message = "The user's code travels without what code.exclude names."
  }
  assert {
    condition     = alltrue([for name in ["package/pyproject.toml", "package/train_cloud/errors.py", "package/bootstrap/install.sh", "package/systemd/train-cloud-train.service"] : contains(keys(aws_s3_object.code), name)])
    error_message = "The package travels whole."
  }
  assert {
    condition     = alltrue([for name in keys(aws_s3_object.code) : !strcontains(name, "__pycache__")])
    error_message = "No compiled files."
  }
  assert {
    condition     = aws_s3_object.overrides.content == "{}" && jsondecode(aws_s3_object.run.content) == { run_id = "tftest-1", overrides = {}, launched_by = "terraform" }
    error_message = "Nothing is overridden unless a variable says so."
  }
  assert {
    condition = (
      aws_s3_bucket.runs[0].force_destroy == false &&
      aws_s3_bucket_versioning.runs[0].versioning_configuration[0].status == "Enabled" &&
      aws_s3_bucket_public_access_block.runs[0].restrict_public_buckets &&
      aws_s3_bucket_lifecycle_configuration.runs[0].rule[0].noncurrent_version_expiration[0].noncurrent_days == 3 &&
      aws_s3_bucket_lifecycle_configuration.runs[0].rule[0].abort_incomplete_multipart_upload[0].days_after_initiation == 1 &&
      aws_s3_bucket_lifecycle_configuration.runs[0].rule[0].expiration[0].expired_object_delete_marker
    )
    error_message = "The bucket is kept, private, versioned, and forgets what is superseded."
  }
  assert {
    condition     = length(aws_vpc_security_group_ingress_rule.allowed) == 0
    error_message = "Nobody may connect unless allowed_cidrs says so."
  }
}

run "role" {
  assert {
    condition = !anytrue(flatten([
      for statement in jsondecode(aws_iam_role_policy.worker.policy).Statement : [
        for resource in flatten([statement.Resource]) : contains(flatten([statement.Action]), "s3:PutObject") && (endswith(resource, "runs/tftest-1/*") || strcontains(resource, "run.yaml") || strcontains(resource, "run.json") || strcontains(resource, "overrides") || strcontains(resource, "code/"))
      ]
    ]))
    error_message = "The worker must not be able to write what was launched."
  }
  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.worker.policy).Statement :
      statement.Sid == "Look" || alltrue([for resource in flatten([statement.Resource]) : strcontains(resource, "train-cloud")])
    ])
    error_message = "Every permission that can be limited is limited to this run's bucket or group."
  }
}

run "on_demand_with_overrides_and_ingress" {
  variables {
    use_spot           = false
    training_type      = "sac"
    total_timesteps    = 1000
    save_frequency     = 100
    allowed_cidrs      = ["203.0.113.7/32", "2001:db8::/64"]
    prefix             = "teams/blue"
    key_pair_name      = "me"
    s3_bucket_name     = "some-bucket"
    max_runtime_hours  = 1.5
    availability_zones = ["us-east-1a"]
  }
  assert {
    condition     = aws_autoscaling_group.worker.mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 100
    error_message = "use_spot = false must give on-demand instances."
  }
  assert {
    condition     = jsondecode(aws_s3_object.overrides.content) == { algorithm = "sac", total_timesteps = 1000, save_frequency = 100 }
    error_message = "The aliases must reach the worker under the run file's names."
  }
  assert {
    condition     = aws_s3_object.run_file.key == "teams/blue/runs/tftest-1/run.yaml" && output.s3_bucket_url == "s3://some-bucket/teams/blue"
    error_message = "Everything lies under the prefix."
  }
  assert {
    condition = (
      length(aws_vpc_security_group_ingress_rule.allowed) == 4 &&
      aws_vpc_security_group_ingress_rule.allowed["203.0.113.7/32 22"].cidr_ipv4 == "203.0.113.7/32" &&
      aws_vpc_security_group_ingress_rule.allowed["2001:db8::/64 6006"].cidr_ipv6 == "2001:db8::/64"
    )
    error_message = "SSH and TensorBoard, for each network, and nothing else."
  }
  assert {
    condition     = aws_autoscaling_schedule.stop.start_time == formatdate("YYYY-MM-DD'T'hh:mm:00'Z'", timeadd(terraform_data.launched.output, "2h"))
    error_message = "Another limit moves the stop; fractions of hours count too."
  }
  assert {
    condition     = startswith(output.ssh_command, "ssh -i ~/.ssh/me.pem ") && startswith(output.tensorboard_url_command, "echo \"http://$(aws ec2 describe-instances ")
    error_message = "Commands look the address up."
  }
}

run "open_ingress_on_request" {
  command = plan
  variables {
    allowed_cidrs      = ["0.0.0.0/0"]
    allow_open_ingress = true
  }
  assert {
    condition     = length(aws_vpc_security_group_ingress_rule.allowed) == 2
    error_message = "With allow_open_ingress the whole internet may connect."
  }
}

run "existing_bucket" {
  command = plan
  variables {
    existing_bucket = true
    s3_bucket_name  = "some-bucket"
  }
  assert {
    condition     = length(aws_s3_bucket.runs) + length(aws_s3_bucket_policy.runs) + length(aws_s3_bucket_lifecycle_configuration.runs) == 0
    error_message = "An existing bucket's settings are left alone."
  }
}

run "delete_artifacts" {
  command = plan
  variables {
    delete_artifacts_on_destroy = true
  }
  assert {
    condition     = aws_s3_bucket.runs[0].force_destroy
    error_message = "delete_artifacts_on_destroy must empty the bucket."
  }
}
