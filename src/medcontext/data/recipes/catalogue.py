"""All recipes by name."""

from __future__ import annotations

from medcontext.data.recipes import acdc, brats, msd, synapse
from medcontext.data.recipes.recipe import Recipe
from medcontext.errors import MedContextError

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for module in (synapse, acdc, brats, msd) for recipe in module.recipes()
}


def recipe_named(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        MedContextError: There is none.
    """
    if name not in RECIPES:
        raise MedContextError(
            "There is no recipe of this name.", found=name, expected=", ".join(RECIPES), remedy="check the name"
        )
    return RECIPES[name]


def where_to_get(name: str) -> str:
    """How a person gets at the data set: its place, its terms, and whether it can be fetched."""
    recipe = recipe_named(name)
    lines = [f"{recipe.name}: {recipe.title}", f"from: {recipe.source}", f"licence: {recipe.licence}"]
    how = "it can be fetched" if recipe.download else "its owners ask for a registration, so it can't be fetched"
    return "\n".join([*lines, f"layout: {recipe.layout}", how])
