# What a worker may do: read its run file and code, write its own run's state, and end its own group. Nothing else. Each
# run has a role of its own: no worker reaches another run's objects or group, though one apply made both. Only within an
# experiment that limits all its runs together does each read what the others have recorded of their sessions.

locals {
  # Built from names, so that the policy can stand before the group does and the first boot finds it.
  group_arns = {
    for id, run in local.runs : id => "arn:${data.aws_partition.current.partition}:autoscaling:${var.aws_region}:${data.aws_caller_identity.current.account_id}:autoScalingGroup:*:autoScalingGroupName/${run.name}"
  }

  # run.yaml, run.json and overrides-*.json are not among them: what was launched stays as it was launched.
  written_by_worker = [
    "head.json", "checkpoints/*", "replay/*", "sessions/*", "boots/*", "env/*", "artifacts/*", "evaluations/*", "logs/*",
    "launched/*", "told/*",
  ]
  # Of a pipeline also its files for readers; and its runs, which nobody else has launched.
  pipeline_files = ["pipeline_state.json", "pipeline_report.json"]

  experiments = { for id, run in local.run_files : id => try(tostring(run.content.experiment), null) }

  # A parameter's ARN has one slash before its name, whether the name begins with one or not.
  secret_arns = {
    for id, run in local.run_files : id => sort(distinct([
      for parameter in values(try({ for name, value in run.content.secrets : name => tostring(value) }, {})) :
      "arn:${data.aws_partition.current.partition}:ssm:${var.aws_region}:${data.aws_caller_identity.current.account_id}:parameter/${trimprefix(parameter, "/")}"
    ]))
  }

  # What a run begins with is read once: another run of this store, or a folder with a model.zip. A file comes with the code.
  initial_models = {
    for id, run in local.run_files : id => coalesce(try(tostring(run.content.initial_model.source), null), try(tostring(run.content.initial_model), null), "none")
  }
  initial_model_folders = {
    for id, source in local.initial_models : id => (
      startswith(source, "run:") ? { bucket = local.bucket_arn, prefix = "${local.root}runs/${split("@", trimprefix(source, "run:"))[0]}/" } :
      can(regex("^s3://[^/]+/.+$", source)) ? {
        bucket = "arn:${data.aws_partition.current.partition}:s3:::${split("/", source)[2]}"
        prefix = join("", [for part in slice(split("/", source), 3, length(split("/", source)) - 1) : "${part}/"])
      } : null
    )
  }

  # Demonstrations in S3: the folder that a .npz object lies in, or one with all that is in it.
  demonstrations = {
    for id, run in local.run_files : id => coalesce(try(tostring(run.content.pretraining.demonstrations), null), try(tostring(run.content.pretraining), null), "none")
  }
  demonstration_folders = {
    for id, source in local.demonstrations : id => can(regex("^s3://[^/]+/.+$", source)) ? {
      bucket = "arn:${data.aws_partition.current.partition}:s3:::${split("/", source)[2]}"
      prefix = join("", [
        for part in slice(split("/", trimsuffix(source, "/")), 3, length(split("/", trimsuffix(source, "/"))) - (endswith(source, ".npz") ? 1 : 0)) : "${part}/"
      ])
    } : null
  }
  # Data that a script reads from S3.
  data_folders = {
    for id, run in local.run_files : id => {
      for number, url in try([for url in run.content.data : tostring(url)], []) : "Data${number + 1}" => {
        bucket = "arn:${data.aws_partition.current.partition}:s3:::${split("/", url)[2]}"
        prefix = join("", [for part in slice(split("/", trimsuffix(url, "/")), 3, length(split("/", trimsuffix(url, "/")))) : "${part}/"])
      } if can(regex("^s3://[^/]+(/.*)?$", url))
    }
  }
  # What a run reads besides its own, by the end of its statements' names.
  input_folders = {
    for id in keys(local.run_files) : id => {
      for name, folder in merge(local.data_folders[id], { InitialModel = local.initial_model_folders[id], Demonstrations = local.demonstration_folders[id] }) : name => folder if folder != null
    }
  }
}

resource "aws_iam_role" "worker" {
  for_each    = local.runs
  name        = each.value.role
  description = "Worker of the run ${each.key}."

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy" "worker" {
  for_each = local.runs
  name     = "run"
  role     = aws_iam_role.worker[each.key].name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([
      {
        Sid       = "List"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = local.bucket_arn
        Condition = { StringLike = { "s3:prefix" = ["${each.value.prefix}*", "${each.value.code_prefix}*"] } }
      },
      {
        Sid      = "Read"
        Effect   = "Allow"
        Action   = "s3:GetObject"
        Resource = ["${local.bucket_arn}/${each.value.prefix}*", "${local.bucket_arn}/${each.value.code_prefix}*"]
      },
      {
        Sid      = "Write"
        Effect   = "Allow"
        Action   = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        Resource = [for part in local.written_by_worker : "${local.bucket_arn}/${each.value.prefix}${part}"]
      },
      {
        Sid    = "EndItself"
        Effect = "Allow"
        Action = [
          "autoscaling:CompleteLifecycleAction",
          "autoscaling:SetDesiredCapacity",
          "autoscaling:TerminateInstanceInAutoScalingGroup",
        ]
        Resource = local.group_arns[each.key]
      },
      {
        # What this machine costs. Neither of the two knows resources.
        Sid      = "LookUpPrices"
        Effect   = "Allow"
        Action   = ["ec2:DescribeSpotPriceHistory", "pricing:GetProducts"]
        Resource = "*"
      },
      ],
      # Each option adds exactly its own.
      [for name, folder in local.input_folders[each.key] : {
        Sid       = "List${name}"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = folder.bucket
        Condition = { StringLike = { "s3:prefix" = ["${folder.prefix}*"] } }
      }],
      [for name, folder in local.input_folders[each.key] : {
        Sid      = "Read${name}"
        Effect   = "Allow"
        Action   = "s3:GetObject"
        Resource = "${folder.bucket}/${folder.prefix}*"
      }],
      [for id in terraform_data.pipeline[*].input : {
        Sid       = "ListSessions"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = local.bucket_arn
        Condition = { StringLike = { "s3:prefix" = ["${local.root}runs/${id}-*"] } }
      }],
      [for id in terraform_data.pipeline[*].input : {
        Sid    = "TrainSessions"
        Effect = "Allow"
        Action = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        Resource = concat(
          ["${local.bucket_arn}/${local.root}runs/${id}-*"],
          [for file in local.pipeline_files : "${local.bucket_arn}/${each.value.prefix}${file}"],
        )
      }],
      # The experiment's own two files; all of its runs write them.
      [for experiment in local.experiments[each.key][*] : {
        Sid       = "ListExperiment"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = local.bucket_arn
        Condition = { StringLike = { "s3:prefix" = ["${local.root}experiments/${experiment}/*"] } }
      }],
      [for experiment in local.experiments[each.key][*] : {
        Sid    = "WriteExperiment"
        Effect = "Allow"
        Action = ["s3:GetObject", "s3:PutObject"]
        Resource = [
          for file in ["config.json", "all_results.json"] : "${local.bucket_arn}/${local.root}experiments/${experiment}/${file}"
        ]
      }],
      # What an experiment file says of all its runs, and where it limits them, how far each is and what it has cost.
      [for name in terraform_data.experiment[*].input : {
        Sid    = "ReadExperiment"
        Effect = "Allow"
        Action = "s3:GetObject"
        Resource = [
          for key in concat(["experiments/${name}/experiment.json"], local.experiment_limited ? ["runs/${name}-*/head.json", "runs/${name}-*/sessions/*"] : []) :
          "${local.bucket_arn}/${local.root}${key}"
        ]
      }],
      [for name in terraform_data.experiment[*].input : {
        Sid       = "ListRunsOfExperiment"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = local.bucket_arn
        Condition = { StringLike = { "s3:prefix" = ["${local.root}runs/${name}-*/"] } }
      } if local.experiment_limited],
      [for parameters in [local.secret_arns[each.key]] : {
        Sid      = "ReadSecrets"
        Effect   = "Allow"
        Action   = "ssm:GetParameter"
        Resource = parameters
      } if length(parameters) > 0],
      local.notifies ? [{
        Sid      = "Tell"
        Effect   = "Allow"
        Action   = "sns:Publish"
        Resource = aws_sns_topic.runs[0].arn
      }] : [],
      local.logs ? [{
        Sid      = "Log"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = "${aws_cloudwatch_log_group.worker[each.key].arn}:*"
      }] : [],
      var.kms_key_arn == null ? [] : [{
        Sid       = "ReadAndWriteWithTheKey"
        Effect    = "Allow"
        Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
        Resource  = var.kms_key_arn
        Condition = { StringEquals = { "kms:ViaService" = "s3.${var.aws_region}.amazonaws.com" } }
      }],
    )
  })
}

# Session Manager: a shell and a log without an open port or a key. Exactly what its agent needs for that; AWS's own
# AmazonSSMManagedInstanceCore would let each worker read every parameter of the account.
resource "aws_iam_role_policy" "session" {
  #checkov:skip=CKV_AWS_290:AWS knows no resources for the actions of ssmmessages; the one of ssm tells AWS that the agent is there.
  #checkov:skip=CKV_AWS_355:As above; AWS's own minimal policy for Session Manager is this one.
  for_each = local.runs
  name     = "session"
  role     = aws_iam_role.worker[each.key].name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid    = "SessionManager"
      Effect = "Allow"
      Action = [
        "ssm:UpdateInstanceInformation",
        "ssmmessages:CreateControlChannel",
        "ssmmessages:CreateDataChannel",
        "ssmmessages:OpenControlChannel",
        "ssmmessages:OpenDataChannel",
      ]
      Resource = "*"
    }]
  })
}

resource "aws_iam_instance_profile" "worker" {
  for_each = local.runs
  name     = each.value.role
  role     = aws_iam_role.worker[each.key].name
}
