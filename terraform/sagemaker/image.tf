# Where the image lies that docker/Dockerfile is built to; SageMaker pulls from ECR in its own region only.

resource "aws_ecr_repository" "image" {
  name                 = var.project_name
  image_tag_mutability = "IMMUTABLE"
  force_delete         = var.delete_images_on_destroy

  image_scanning_configuration {
    scan_on_push = true
  }

  encryption_configuration {
    #checkov:skip=CKV_AWS_136:With kms_key_arn it is a key of one's own.
    encryption_type = var.kms_key_arn == null ? "AES256" : "KMS"
    kms_key         = var.kms_key_arn
  }
}

# Each push leaves layers of what had the tag before, or of what was never given one.
resource "aws_ecr_lifecycle_policy" "image" {
  repository = aws_ecr_repository.image.name

  policy = jsonencode({
    rules = [{
      rulePriority = 1
      description  = "forget images without a tag"
      selection    = { tagStatus = "untagged", countType = "sinceImagePushed", countUnit = "days", countNumber = 14 }
      action       = { type = "expire" }
    }]
  })
}
