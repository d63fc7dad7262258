# Where the workers stand: the default VPC or the subnets given; nobody may connect to one unless allowed_cidrs says so.

locals {
  subnet_ids = length(var.subnet_ids) > 0 ? var.subnet_ids : data.aws_subnets.default[0].ids
  vpc_id     = length(var.subnet_ids) > 0 ? data.aws_subnet.given[var.subnet_ids[0]].vpc_id : data.aws_vpc.default[0].id
  ingress = {
    for triple in setproduct(keys(local.runs), var.allowed_cidrs, [22, 6006]) :
    join(" ", triple) => { run = triple[0], cidr = triple[1], port = triple[2] }
  }
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

  dynamic "filter" {
    for_each = length(var.availability_zones) > 0 ? [var.availability_zones] : []
    content {
      name   = "availability-zone"
      values = filter.value
    }
  }

  lifecycle {
    postcondition {
      condition     = length(self.ids) > 0
      error_message = "availability_zones: the default VPC has no default subnet there; name other zones, or subnet_ids."
    }
  }
}

data "aws_subnet" "given" {
  for_each = toset(var.subnet_ids)
  id       = each.value
}

resource "aws_security_group" "worker" {
  for_each    = local.runs
  name        = each.value.name
  description = "Worker of the run ${each.key}: out to everywhere, in from allowed_cidrs."
  vpc_id      = local.vpc_id

  lifecycle {
    precondition {
      condition     = length(distinct([for subnet in data.aws_subnet.given : subnet.vpc_id])) <= 1
      error_message = "subnet_ids: these subnets are in several VPCs; give subnets of one."
    }
  }
}

resource "aws_vpc_security_group_egress_rule" "everywhere" {
  for_each          = { for pair in setproduct(keys(local.runs), ["0.0.0.0/0", "::/0"]) : join(" ", pair) => { run = pair[0], cidr = pair[1] } }
  security_group_id = aws_security_group.worker[each.value.run].id
  description       = "S3, the interfaces of AWS and package indexes"
  cidr_ipv4         = strcontains(each.value.cidr, ":") ? null : each.value.cidr
  cidr_ipv6         = strcontains(each.value.cidr, ":") ? each.value.cidr : null
  ip_protocol       = "-1"
}

resource "aws_vpc_security_group_ingress_rule" "allowed" {
  for_each          = local.ingress
  security_group_id = aws_security_group.worker[each.value.run].id
  description       = each.value.port == 22 ? "SSH" : "TensorBoard"
  cidr_ipv4         = strcontains(each.value.cidr, ":") ? null : each.value.cidr
  cidr_ipv6         = strcontains(each.value.cidr, ":") ? each.value.cidr : null
  ip_protocol       = "tcp"
  from_port         = each.value.port
  to_port           = each.value.port
}
