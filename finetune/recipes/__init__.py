"""The recipes that ship: one TOML file each. See `finetune.recipe` for their keys."""
