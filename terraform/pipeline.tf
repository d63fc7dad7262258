# The sessions of a pipeline file, trained one after the other by the machines of one group. `train-cloud expand` writes the
# file that they read; what is written here is only the proof that it is that of the pipeline file as it is now.

locals {
  pipeline_path = var.pipeline_file == null ? null : pathexpand(var.pipeline_file)
  # train_cloud/operations/expand_pipeline.py writes it, and the listing in it last.
  pipeline_folder  = try("${dirname(local.pipeline_path)}/${replace(basename(local.pipeline_path), "/\\.[^.]*$/", "")}-sessions", null)
  pipeline_listing = try(jsondecode(file("${local.pipeline_folder}/pipeline.json")), null)
  pipeline_id      = try(tostring(local.pipeline_listing.id), null)
  pipeline_paths   = [for path in try(["${local.pipeline_folder}/${local.pipeline_listing.file}"], []) : path if fileexists(path)]

  # Run from where Terraform runs.
  pipeline_command = var.pipeline_file == null ? null : join(" ", compact([
    "train-cloud expand", can(regex("^[A-Za-z0-9_@%+=:,./~-]+$", var.pipeline_file)) ? var.pipeline_file : "'${var.pipeline_file}'",
    try(local.pipeline_listing.options, ""),
  ]))
  pipeline_changed = concat(
    [
      for path, digest in try(local.pipeline_listing.sources, {}) : path
      if try(filesha256("${local.pipeline_folder}/${path}"), "gone") != digest
    ],
    [for path in local.pipeline_paths : basename(path) if filesha256(path) != try(local.pipeline_listing.sha256, "")],
  )
}

# Before anything else of a pipeline. Not as a validation of the variable: `terraform destroy` asks those too.
resource "terraform_data" "pipeline" {
  count = var.pipeline_file == null ? 0 : 1
  input = local.pipeline_id

  lifecycle {
    precondition {
      condition     = length(local.pipeline_changed) == 0
      error_message = "pipeline_file: what is launched was made before ${join(" and ", local.pipeline_changed)} was changed: run ${coalesce(local.pipeline_command, "-")} and then this again."
    }
  }
}
