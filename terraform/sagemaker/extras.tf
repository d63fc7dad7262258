# What is off unless asked for: notifications, and a log group that forgets.

resource "aws_sns_topic" "jobs" {
  #checkov:skip=CKV_AWS_26:EventBridge may not use AWS's own key for SNS, and nothing would ever arrive; a message says a job's name and how it ended.
  count       = var.notification_emails == null ? 0 : 1
  name_prefix = "${var.project_name}-sagemaker-"
}

resource "aws_sns_topic_subscription" "email" {
  for_each  = toset(coalesce(var.notification_emails, []))
  topic_arn = aws_sns_topic.jobs[0].arn
  protocol  = "email"
  endpoint  = each.value
}

resource "aws_sns_topic_policy" "jobs" {
  count = length(aws_sns_topic.jobs)
  arn   = aws_sns_topic.jobs[0].arn

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "Tell"
      Effect    = "Allow"
      Principal = { Service = "events.amazonaws.com" }
      Action    = "sns:Publish"
      Resource  = aws_sns_topic.jobs[0].arn
      Condition = { ArnEquals = { "aws:SourceArn" = aws_cloudwatch_event_rule.ended[0].arn } }
    }]
  })
}

# Jobs of this module's role, and no others of the account.
resource "aws_cloudwatch_event_rule" "ended" {
  count       = length(aws_sns_topic.jobs)
  name        = "${var.project_name}-sagemaker"
  description = "Training jobs that have completed, failed or stopped"

  event_pattern = jsonencode({
    source        = ["aws.sagemaker"]
    "detail-type" = ["SageMaker Training Job State Change"]
    detail = {
      RoleArn           = [aws_iam_role.job.arn]
      TrainingJobStatus = ["Completed", "Failed", "Stopped"]
    }
  })
}

resource "aws_cloudwatch_event_target" "topic" {
  count     = length(aws_sns_topic.jobs)
  rule      = aws_cloudwatch_event_rule.ended[0].name
  target_id = "topic"
  arn       = aws_sns_topic.jobs[0].arn

  input_transformer {
    input_paths = {
      job       = "$.detail.TrainingJobName"
      secondary = "$.detail.SecondaryStatus"
      status    = "$.detail.TrainingJobStatus"
    }
    input_template = "\"The training job <job> is <status> (<secondary>). How the run stands: train-cloud status.\""
  }
}

resource "aws_cloudwatch_log_group" "jobs" {
  #checkov:skip=CKV_AWS_338:How long is the variable's to say.
  count             = var.log_days == null ? 0 : 1
  name              = local.log_group
  retention_in_days = var.log_days
  kms_key_id        = var.kms_key_arn
}
