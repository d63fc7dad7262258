locals {
  # In the module where `train-cloud init` wrote it, else in the checkout.
  cluster_template = fileexists("${path.module}/cluster.yaml") ? "${path.module}/cluster.yaml" : "${path.module}/../../examples/ray/cluster.yaml"
  cluster_file = templatefile(local.cluster_template, {
    cluster_name       = var.cluster_name
    region             = var.aws_region
    image_id           = local.image_id
    key_name           = var.key_name
    subnet_ids         = jsonencode(local.subnet_ids)
    security_group_id  = aws_security_group.node.id
    head_profile_arn   = aws_iam_instance_profile.node["head"].arn
    worker_profile_arn = aws_iam_instance_profile.node["worker"].arn
    store              = local.store
  })
}

output "cluster_file" {
  description = "For `ray up`: terraform output -raw cluster_file > cluster.yaml"
  # A new image is there from time to time: what is known only then is no secret.
  value = nonsensitive(local.cluster_file)
}

output "store" {
  description = "For `train-cloud launch --platform ray --store`."
  value       = local.store
}

output "security_group_id" {
  description = "Of the nodes."
  value       = aws_security_group.node.id
}

output "instance_profiles" {
  description = "Of the head and of the workers."
  value       = { for part, profile in aws_iam_instance_profile.node : part => profile.arn }
}
