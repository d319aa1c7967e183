"""What a person asks for: the recipe, validated. Data and validation only."""
