# For jobs in a VPC of one's own: a security group that lets out and nobody in.

data "aws_subnet" "given" {
  for_each = toset(var.subnet_ids)
  id       = each.value
}

resource "aws_security_group" "job" {
  #checkov:skip=CKV2_AWS_5:The jobs have it: security_groups in a run file.
  count       = length(var.subnet_ids) > 0 ? 1 : 0
  name        = "${var.project_name}-sagemaker"
  description = "Training jobs: out to everywhere, in from nowhere."
  vpc_id      = data.aws_subnet.given[var.subnet_ids[0]].vpc_id

  lifecycle {
    precondition {
      condition     = length(distinct([for subnet in data.aws_subnet.given : subnet.vpc_id])) <= 1
      error_message = "subnet_ids: these subnets are in several VPCs; give subnets of one."
    }
  }
}

resource "aws_vpc_security_group_egress_rule" "everywhere" {
  for_each          = toset(length(aws_security_group.job) > 0 ? ["0.0.0.0/0", "::/0"] : [])
  security_group_id = aws_security_group.job[0].id
  description       = "S3, the interfaces of AWS and package indexes"
  cidr_ipv4         = strcontains(each.value, ":") ? null : each.value
  cidr_ipv6         = strcontains(each.value, ":") ? each.value : null
  ip_protocol       = "-1"
}
