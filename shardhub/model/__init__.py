"""The only place that runs MLX: building upstream's models, tapping their layers, proving and running stages."""

from shardhub.upstream.imports import watch

watch()
