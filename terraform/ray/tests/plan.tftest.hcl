# What the module makes of its variables, without AWS.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  s3_bucket_name = "my-runs"
  prefix         = "lab"
  key_name       = "mine"
  allowed_cidrs  = ["203.0.113.7/32"]
}

run "cluster" {
  assert {
    condition     = output.store == "s3://my-runs/lab"
    error_message = "The store lies below the prefix."
  }
  assert {
    condition = alltrue([
      for name, node in yamldecode(output.cluster_file).available_node_types :
      node.node_config.KeyName == "mine" && node.node_config.ImageId == "ami-0123456789abcdef0" &&
      node.node_config.SecurityGroupIds == ["sg-0123456789abcdef0"] && node.node_config.MetadataOptions.HttpTokens == "required" &&
      (name == "head") == !can(node.node_config.InstanceMarketOptions)
    ])
    error_message = "Every node stands in the security group; all but the head are spot."
  }
  assert {
    condition = (
      aws_vpc_security_group_ingress_rule.nodes.referenced_security_group_id == "sg-0123456789abcdef0" &&
      [for rule in aws_vpc_security_group_ingress_rule.ssh : rule.cidr_ipv4] == ["203.0.113.7/32"] &&
      alltrue([for rule in aws_vpc_security_group_ingress_rule.ssh : rule.from_port == 22 && rule.to_port == 22])
    )
    error_message = "Ray's ports are open to the nodes alone, SSH to allowed_cidrs."
  }
}

run "least_rights" {
  variables {
    secret_parameters = ["/lab/key"]
    read_s3_urls      = ["s3://models/old/"]
    kms_key_arn       = "arn:aws:kms:us-east-1:123456789012:key/0123"
  }
  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.runs["worker"].policy).Statement :
      statement.Resource != "*" || statement.Sid == "LookUpPrices"
    ])
    error_message = "Only what knows no resources is allowed on all of them."
  }
  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.autoscaler.policy).Statement :
      can(statement.Condition) || contains(["LookAtMachines", "LaunchFrom"], statement.Sid)
    ])
    error_message = "The head launches, tags and ends nothing but workers of its own cluster."
  }
  assert {
    condition     = length([for statement in jsondecode(aws_iam_role_policy.runs["head"].policy).Statement : statement if contains(["ListInput0", "ReadInput0", "ReadSecrets", "ReadAndWriteWithTheKey"], statement.Sid)]) == 4
    error_message = "Each option adds exactly its own."
  }
}
