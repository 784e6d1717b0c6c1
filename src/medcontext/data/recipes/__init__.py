"""Recipes: public data sets by name, from the download as its owners distribute it to a data set with its splits."""

from medcontext.data.recipes.catalogue import RECIPES, recipe_named, where_to_get
from medcontext.data.recipes.importing import fetch_dataset, import_dataset
from medcontext.data.recipes.recipe import Recipe
from medcontext.data.recipes.transfer import fetch

__all__ = ["RECIPES", "Recipe", "fetch", "fetch_dataset", "import_dataset", "recipe_named", "where_to_get"]
