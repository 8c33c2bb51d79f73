"""From pictures and a budget to a trained run: recipes, plans, the loop, monitoring, two stages.

May import all but `applications` and `commands`.
"""
