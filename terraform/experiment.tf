# The runs of an experiment file. Its rules (deep merges, dotted keys, what a run file may say) are Python's, so that
# `train-cloud expand` writes the run files, and what is written here is only the proof that they are all there and are
# those of the experiment file as it is now (docs/architecture.md).

locals {
  experiment_path = var.experiment_file == null ? null : pathexpand(var.experiment_file)
  experiment_name = try(tostring(yamldecode(file(local.experiment_path)).experiment), null)
  # train_cloud/operations/expand.py writes it, and the listing in it last.
  experiment_folder  = try("${dirname(local.experiment_path)}/${local.experiment_name}-runs", null)
  experiment_listing = try(jsondecode(file("${local.experiment_folder}/experiment.json")), null)
  experiment_runs    = try({ for id, run in local.experiment_listing.runs : id => "${local.experiment_folder}/${id}.yaml" }, {})
  experiment_paths   = [for id, path in local.experiment_runs : path if fileexists(path)]

  # Run from where Terraform runs.
  experiment_command = var.experiment_file == null ? null : join(" ", compact([
    "train-cloud expand", can(regex("^[A-Za-z0-9_@%+=:,./~-]+$", var.experiment_file)) ? var.experiment_file : "'${var.experiment_file}'",
    try(local.experiment_listing.options, ""),
  ]))
  experiment_sources_changed = [
    for path, digest in try(local.experiment_listing.sources, {}) : path
    if try(filesha256("${local.experiment_folder}/${path}"), "gone") != digest
  ]
  experiment_runs_changed = [
    for id, path in local.experiment_runs : "${id}.yaml"
    if try(filesha256(path), "gone") != try(local.experiment_listing.runs[id].sha256, "")
  ]

  # Where all of them stop: each worker reads it, and the sum of what all have spent.
  experiment_limits  = { for name in ["hours", "dollars"] : name => try(tonumber(local.experiment_listing.limits[name]), null) }
  experiment_limited = anytrue([for limit in values(local.experiment_limits) : limit != null])
}

# Before anything else of an experiment. Not as validations of the variable: `terraform destroy` asks those too.
resource "terraform_data" "experiment" {
  count = var.experiment_file == null ? 0 : 1
  input = local.experiment_name

  lifecycle {
    precondition {
      condition     = length(local.experiment_sources_changed) == 0
      error_message = "experiment_file: its run files were made before ${join(" and ", local.experiment_sources_changed)} was changed: run ${coalesce(local.experiment_command, "-")} and then this again."
    }

    precondition {
      condition     = length(local.experiment_runs_changed) == 0
      error_message = "experiment_file: ${join(", ", slice(local.experiment_runs_changed, 0, min(3, length(local.experiment_runs_changed))))} in ${coalesce(local.experiment_folder, "-")} is not what was written there: run ${coalesce(local.experiment_command, "-")} and then this again."
    }
  }
}

resource "aws_s3_object" "experiment" {
  count        = length(terraform_data.experiment)
  bucket       = local.bucket
  key          = "${local.root}experiments/${terraform_data.experiment[0].input}/experiment.json"
  content_type = "application/json"
  depends_on   = [terraform_data.bucket_ready]

  # The workers read it again while they train, so that limits that are raised in mid-run hold.
  content = jsonencode({
    experiment = local.experiment_name
    limits     = local.experiment_limits
    runs       = { for id, run in try(local.experiment_listing.runs, {}) : id => { levels = run.levels, seed = run.seed } }
  })
}
