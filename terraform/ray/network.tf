# Where the nodes stand. Ray's ports let whoever reaches them run anything: they are open to the nodes of the cluster alone.

locals {
  subnet_ids = length(var.subnet_ids) > 0 ? var.subnet_ids : data.aws_subnets.default[0].ids
  vpc_id     = length(var.subnet_ids) > 0 ? data.aws_subnet.given[var.subnet_ids[0]].vpc_id : data.aws_vpc.default[0].id
}

data "aws_vpc" "default" {
  count   = length(var.subnet_ids) > 0 ? 0 : 1
  default = true
}

data "aws_subnets" "default" {
  count = length(data.aws_vpc.default)

  filter {
    name   = "vpc-id"
    values = [data.aws_vpc.default[0].id]
  }

  filter {
    name   = "default-for-az"
    values = ["true"]
  }

  lifecycle {
    postcondition {
      condition     = length(self.ids) > 0
      error_message = "subnet_ids: the default VPC has no default subnet; give subnets."
    }
  }
}

data "aws_subnet" "given" {
  for_each = toset(var.subnet_ids)
  id       = each.value
}

resource "aws_security_group" "node" {
  #checkov:skip=CKV2_AWS_5:`ray up` attaches it; the nodes are its own.
  name        = "${var.cluster_name}-ray"
  description = "Nodes of the Ray cluster ${var.cluster_name}: out to everywhere, SSH from allowed_cidrs, all among themselves."
  vpc_id      = local.vpc_id

  lifecycle {
    precondition {
      condition     = length(distinct([for subnet in data.aws_subnet.given : subnet.vpc_id])) <= 1
      error_message = "subnet_ids: these subnets are in several VPCs; give subnets of one."
    }
  }
}

resource "aws_vpc_security_group_egress_rule" "all" {
  #checkov:skip=CKV_AWS_382:Packages, S3 and the metadata of images have no fixed addresses.
  security_group_id = aws_security_group.node.id
  description       = "S3, PyPI, AWS"
  ip_protocol       = "-1"
  cidr_ipv4         = "0.0.0.0/0"
}

resource "aws_vpc_security_group_ingress_rule" "nodes" {
  security_group_id            = aws_security_group.node.id
  description                  = "Ray, among its nodes"
  ip_protocol                  = "-1"
  referenced_security_group_id = aws_security_group.node.id
}

resource "aws_vpc_security_group_ingress_rule" "ssh" {
  for_each          = toset(var.allowed_cidrs)
  security_group_id = aws_security_group.node.id
  description       = "ray up, ray attach"
  ip_protocol       = "tcp"
  from_port         = 22
  to_port           = 22
  cidr_ipv4         = each.value
}
