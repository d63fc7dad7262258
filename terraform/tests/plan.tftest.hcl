# What the module makes of its variables, without AWS: the provider is a mock, everything else is real.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  run_file = "tests/run.yaml"
}

run "worker" {
  assert {
    condition     = aws_autoscaling_group.worker["tftest-1"].name == "train-cloud-tftest-1"
    error_message = "The group's name must contain the run_id: a new run needs a new worker."
  }
  assert {
    condition = (
      aws_autoscaling_group.worker["tftest-1"].min_size == 0 &&
      aws_autoscaling_group.worker["tftest-1"].max_size == 1 &&
      aws_autoscaling_group.worker["tftest-1"].desired_capacity == 1 &&
      aws_autoscaling_group.worker["tftest-1"].capacity_rebalance == false &&
      aws_autoscaling_group.worker["tftest-1"].wait_for_capacity_timeout == "0" &&
      aws_autoscaling_group.worker["tftest-1"].suspended_processes == toset(["AZRebalance"])
    )
    error_message = "Never two workers at once, and no failed apply for lack of spot capacity."
  }
  assert {
    condition = (
      aws_autoscaling_group.worker["tftest-1"].mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 0 &&
      aws_autoscaling_group.worker["tftest-1"].mixed_instances_policy[0].instances_distribution[0].spot_allocation_strategy == "price-capacity-optimized" &&
      aws_autoscaling_group.worker["tftest-1"].mixed_instances_policy[0].launch_template[0].override[*].instance_type == tolist(var.instance_types) &&
      aws_autoscaling_group.worker["tftest-1"].mixed_instances_policy[0].launch_template[0].launch_template_specification[0].version == "7"
    )
    error_message = "Spot, of all the types, from the newest template."
  }
  assert {
    condition     = length(aws_launch_template.worker["tftest-1"].instance_market_options) == 0
    error_message = "EC2 refuses spot options in the template of a mixed instances policy."
  }
  assert {
    condition = anytrue([
      for hook in aws_autoscaling_group.worker["tftest-1"].initial_lifecycle_hook :
      hook.lifecycle_transition == "autoscaling:EC2_INSTANCE_TERMINATING" && hook.heartbeat_timeout == 120 && hook.default_result == "CONTINUE"
    ])
    error_message = "Scale-in must give the two minutes that a spot interruption gives."
  }
  assert {
    condition = (
      aws_launch_template.worker["tftest-1"].metadata_options[0].http_tokens == "required" &&
      aws_launch_template.worker["tftest-1"].metadata_options[0].http_put_response_hop_limit == 1 &&
      aws_launch_template.worker["tftest-1"].block_device_mappings[0].device_name == "/dev/sda1" &&
      aws_launch_template.worker["tftest-1"].block_device_mappings[0].ebs[0].encrypted == "true" &&
      aws_launch_template.worker["tftest-1"].block_device_mappings[0].ebs[0].volume_size == 150 &&
      aws_launch_template.worker["tftest-1"].block_device_mappings[0].ebs[0].throughput == 500
    )
    error_message = "IMDSv2 only, one hop; an encrypted root volume that is fast enough."
  }
  assert {
    condition     = aws_launch_template.worker["tftest-1"].instance_initiated_shutdown_behavior == "terminate"
    error_message = "A worker that can only power itself off must not stay behind, stopped."
  }
  assert {
    condition     = length(aws_launch_template.worker["tftest-1"].user_data) < 21848
    error_message = "User-data must fit into 16 KB."
  }
  assert {
    condition     = strcontains(base64decode(aws_launch_template.worker["tftest-1"].user_data), "\nTRAIN_CLOUD_STORE=s3://train-cloud-123456789012-us-east-1\n")
    error_message = "User-data must say where the run is stored."
  }
  assert {
    condition     = strcontains(base64decode(aws_launch_template.worker["tftest-1"].user_data), "\nTRAIN_CLOUD_CODE_DIGEST=${sha256(one(values(aws_s3_object.code_sums)).content)}\n")
    error_message = "User-data must pin the code by the digest of SHA256SUMS."
  }
  assert {
    condition = (
      aws_autoscaling_schedule.stop["tftest-1"].desired_capacity == 0 &&
      aws_autoscaling_schedule.stop["tftest-1"].start_time == formatdate("YYYY-MM-DD'T'hh:mm:00'Z'", timeadd(terraform_data.launched["tftest-1"].output, "24h30m")) &&
      aws_autoscaling_schedule.stop["tftest-1"].recurrence == "${formatdate("m", timeadd(terraform_data.launched["tftest-1"].output, "30m"))} * * * *"
    )
    error_message = "The group must go to 0 at the limit plus 30 minutes, and each hour after that."
  }
}

run "storage" {
  assert {
    condition     = contains(keys(local.code["tftest-1"]), "user/my_env.py") && !contains(keys(local.code["tftest-1"]), "user/data/big.txt") && toset([for key in keys(aws_s3_object.code) : substr(key, 65, -1)]) == toset(keys(local.code["tftest-1"]))
    error_message = "The user's code travels without what code.exclude names."
  }
  assert {
    condition     = alltrue([for name in ["package/pyproject.toml", "package/train_cloud/errors.py", "package/bootstrap/install.sh", "package/systemd/train-cloud-train.service"] : contains(keys(local.code["tftest-1"]), name)])
    error_message = "The package travels whole."
  }
  assert {
    condition     = toset(keys(aws_s3_object.code)) == toset([for name in keys(local.code["tftest-1"]) : "${one(keys(aws_s3_object.code_sums))}/${name}"])
    error_message = "What is uploaded is the code, under its digest."
  }
  assert {
    condition     = alltrue([for name in keys(aws_s3_object.code) : !strcontains(name, "__pycache__")])
    error_message = "No compiled files."
  }
  assert {
    condition     = aws_s3_object.overrides["tftest-1"].content == "{}" && jsondecode(aws_s3_object.run["tftest-1"].content).overrides == {}
    error_message = "Nothing is overridden unless a variable says so."
  }
  assert {
    condition = jsondecode(aws_s3_object.run["tftest-1"].content) == {
      run_id      = "tftest-1"
      overrides   = {}
      launched_by = "terraform"
      deadline    = timeadd(terraform_data.launched["tftest-1"].output, "24h")
      volume      = { type = "gp3", gb = 150, iops = 3000, throughput = 500 }
    }
    error_message = "The worker must find max_runtime_hours in run.json, as a time, and the volume that it pays for."
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
      for statement in jsondecode(aws_iam_role_policy.worker["tftest-1"].policy).Statement : [
        for resource in flatten([statement.Resource]) : contains(flatten([statement.Action]), "s3:PutObject") && (endswith(resource, "runs/tftest-1/*") || strcontains(resource, "run.yaml") || strcontains(resource, "run.json") || strcontains(resource, "overrides") || strcontains(resource, "code/"))
      ]
    ]))
    error_message = "The worker must not be able to write what was launched."
  }
  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.worker["tftest-1"].policy).Statement :
      statement.Sid == "LookUpPrices" || alltrue([for resource in flatten([statement.Resource]) : strcontains(resource, "train-cloud")])
    ])
    error_message = "Every permission that can be limited is limited to this run's bucket or group."
  }
  assert {
    condition = toset(flatten([
      for statement in jsondecode(aws_iam_role_policy.worker["tftest-1"].policy).Statement : statement.Action if statement.Sid == "LookUpPrices"
    ])) == toset(["ec2:DescribeSpotPriceHistory", "pricing:GetProducts"])
    error_message = "What is limited to nothing may only look up prices."
  }
  assert {
    condition = (
      aws_iam_role.worker["tftest-1"].name == "train-cloud-tftest-1-us-east-1" &&
      aws_iam_instance_profile.worker["tftest-1"].name == "train-cloud-tftest-1-us-east-1"
    )
    error_message = "IAM knows no regions: the names must."
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
    condition     = aws_autoscaling_group.worker["tftest-1"].mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 100
    error_message = "use_spot = false must give on-demand instances."
  }
  assert {
    condition     = jsondecode(aws_s3_object.overrides["tftest-1"].content) == { algorithm = "sac", total_timesteps = 1000, save_frequency = 100 }
    error_message = "The aliases must reach the worker under the run file's names."
  }
  assert {
    condition     = aws_s3_object.run_file["tftest-1"].key == "teams/blue/runs/tftest-1/run.yaml" && output.s3_bucket_url == "s3://some-bucket/teams/blue"
    error_message = "Everything lies under the prefix."
  }
  assert {
    condition = (
      length(aws_vpc_security_group_ingress_rule.allowed) == 4 &&
      aws_vpc_security_group_ingress_rule.allowed["tftest-1 203.0.113.7/32 22"].cidr_ipv4 == "203.0.113.7/32" &&
      aws_vpc_security_group_ingress_rule.allowed["tftest-1 2001:db8::/64 6006"].cidr_ipv6 == "2001:db8::/64"
    )
    error_message = "SSH and TensorBoard, for each network, and nothing else."
  }
  assert {
    condition     = aws_autoscaling_schedule.stop["tftest-1"].start_time == formatdate("YYYY-MM-DD'T'hh:mm:00'Z'", timeadd(terraform_data.launched["tftest-1"].output, "2h"))
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

run "several_runs" {
  variables {
    run_file  = null
    run_files = ["tests/run.yaml", "tests/second_run.yaml", "tests/third_run.yaml"]
  }
  assert {
    condition = alltrue([
      for resources in [
        aws_autoscaling_group.worker, aws_launch_template.worker, aws_autoscaling_schedule.stop, aws_iam_role_policy.worker,
        aws_iam_instance_profile.worker, aws_security_group.worker, aws_s3_object.run_file, aws_s3_object.overrides,
      ] : toset(keys(resources)) == toset(["tftest-1", "tftest-2", "tftest-3"])
    ])
    error_message = "Each run has a group, a template, a schedule, a role and objects of its own."
  }
  assert {
    condition     = [for group in aws_autoscaling_group.worker : group.name] == ["train-cloud-tftest-1", "train-cloud-tftest-2", "train-cloud-tftest-3"]
    error_message = "A group's name contains its run_id."
  }
  assert {
    condition = alltrue([
      for id, policy in aws_iam_role_policy.worker : alltrue([
        for statement in jsondecode(policy.policy).Statement : alltrue([
          for resource in flatten([statement.Resource]) :
          resource == "*" || endswith(resource, ":::train-cloud-123456789012-us-east-1") || strcontains(resource, "/${id}/") || endswith(resource, "autoScalingGroupName/train-cloud-${id}") || strcontains(resource, "/code/")
        ])
      ])
    ])
    error_message = "A worker may reach its own run and group, not its neighbour's."
  }
  assert {
    condition = alltrue([
      for id, policy in aws_iam_role_policy.worker : [
        for statement in jsondecode(policy.policy).Statement : statement.Condition.StringLike["s3:prefix"][0] if statement.Sid == "List"
      ] == ["runs/${id}/*"]
    ])
    error_message = "A worker may list its own run only."
  }
  assert {
    condition = alltrue([
      for id, template in aws_launch_template.worker :
      strcontains(base64decode(template.user_data), "\nTRAIN_CLOUD_RUN_ID=${id}\n") && strcontains(base64decode(template.user_data), "\nTRAIN_CLOUD_AUTOSCALING_GROUP=train-cloud-${id}\n") && template.iam_instance_profile[0].name == "train-cloud-${id}-us-east-1"
    ])
    error_message = "Each worker knows its own run."
  }
  assert {
    condition     = length(aws_s3_object.code_sums) == 2
    error_message = "Runs with the same code share it."
  }
  assert {
    condition     = output.autoscaling_group_name == null && output.status_command == "train-cloud status s3://train-cloud-123456789012-us-east-1" && toset(keys(output.runs)) == toset(["tftest-1", "tftest-2", "tftest-3"])
    error_message = "The outputs are those of each run."
  }
  assert {
    condition     = length(split("--auto-scaling-group-name", output.scaling_activities_command)) == 4
    error_message = "One command says for all runs why there is no worker."
  }
}

run "nothing_extra_by_default" {
  command = plan
  assert {
    condition     = length(aws_sns_topic.runs) + length(aws_cloudwatch_log_group.worker) + length(aws_kms_grant.autoscaling) + length(data.aws_iam_role.autoscaling) == 0
    error_message = "Notifications, CloudWatch and keys are off unless asked for."
  }
  assert {
    condition     = aws_s3_bucket_server_side_encryption_configuration.runs[0].rule[*].apply_server_side_encryption_by_default[0].sse_algorithm == tolist(["AES256"])
    error_message = "The bucket is encrypted with S3's own key."
  }
}

run "extras" {
  variables {
    notification_emails = ["me@example.org"]
    cloudwatch_log_days = 30
    kms_key_arn         = "arn:aws:kms:us-east-1:123456789012:key/0123-abc"
  }
  assert {
    condition = (
      one(values(aws_sns_topic_subscription.email)).endpoint == "me@example.org" &&
      aws_cloudwatch_log_group.worker["tftest-1"].name == "/train-cloud-tftest-1" &&
      aws_cloudwatch_log_group.worker["tftest-1"].retention_in_days == 30
    )
    error_message = "A topic with a subscription, a log group that forgets."
  }
  assert {
    condition = alltrue([
      for line in ["TRAIN_CLOUD_TOPIC=${aws_sns_topic.runs[0].arn}", "TRAIN_CLOUD_LOG_GROUP=/train-cloud-tftest-1"] :
      strcontains(base64decode(aws_launch_template.worker["tftest-1"].user_data), "\n${line}\n")
    ])
    error_message = "The worker must know where to tell and to log."
  }
  assert {
    condition = {
      for statement in jsondecode(aws_iam_role_policy.worker["tftest-1"].policy).Statement :
      statement.Sid => flatten([statement.Action, statement.Resource]) if contains(["Tell", "Log", "ReadAndWriteWithTheKey"], statement.Sid)
      } == {
      Tell                   = ["sns:Publish", aws_sns_topic.runs[0].arn]
      Log                    = ["logs:CreateLogStream", "logs:PutLogEvents", "${aws_cloudwatch_log_group.worker["tftest-1"].arn}:*"]
      ReadAndWriteWithTheKey = ["kms:Decrypt", "kms:GenerateDataKey", "arn:aws:kms:us-east-1:123456789012:key/0123-abc"]
    }
    error_message = "Each option adds exactly its statement."
  }
  assert {
    condition = (
      aws_launch_template.worker["tftest-1"].block_device_mappings[0].ebs[0].kms_key_id == var.kms_key_arn &&
      one(aws_s3_bucket_server_side_encryption_configuration.runs[0].rule[*].apply_server_side_encryption_by_default[0].kms_master_key_id) == var.kms_key_arn &&
      aws_kms_grant.autoscaling[0].grantee_principal == data.aws_iam_role.autoscaling[0].arn &&
      contains(aws_kms_grant.autoscaling[0].operations, "CreateGrant")
    )
    error_message = "Volume and bucket use the key, and Auto Scaling may."
  }
  assert {
    condition     = length(aws_launch_template.worker["tftest-1"].user_data) < 21848
    error_message = "User-data must fit into 16 KB with everything on."
  }
}

# The last one applied: without it the tests' own destroy would stop at the bucket.
run "another_image" {
  variables {
    ami_id                      = "ami-0fedcba9876543210"
    delete_artifacts_on_destroy = true
  }
  override_data {
    target = data.aws_ami.image
    values = {
      id                    = "ami-0fedcba9876543210"
      architecture          = "x86_64"
      root_device_name      = "/dev/sda1"
      block_device_mappings = [{ device_name = "/dev/sda1", no_device = "", virtual_name = "", ebs = { volume_size = "200" } }]
    }
  }
  assert {
    condition     = length(data.aws_ssm_parameter.image) == 0
    error_message = "With an ami_id nobody reads which image is the newest."
  }
  assert {
    condition     = data.aws_ami.image.id != aws_launch_template.worker["tftest-1"].image_id && aws_launch_template.worker["tftest-1"].image_id == "ami-0123456789abcdef0"
    error_message = "A newer image must not replace the template in mid-run."
  }
}
