"""From a recipe to what a run needs: model, data, processor, device."""
