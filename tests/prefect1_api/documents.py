"""Documents: GraphQL text and variables, read into fields whose arguments are plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from graphql import GraphQLError, parse
from graphql.language import (
    DocumentNode,
    FieldNode,
    NonNullTypeNode,
    OperationDefinitionNode,
    SelectionSetNode,
    VariableNode,
)
from graphql.language import print_ast as printed
from graphql.utilities import value_from_ast_untyped

from tests.prefect1_api.errors import Invalid


@dataclass(frozen=True)
class Field:
    """One field of a selection."""

    name: str
    alias: str
    arguments: dict[str, Any]
    selection: tuple[Field, ...]
    #: the declared type of each argument that is a variable
    declared: dict[str, str]


@dataclass(frozen=True)
class Operation:
    """A query or a mutation with its root fields in order."""

    kind: str
    fields: tuple[Field, ...]


@lru_cache(maxsize=512)
def _parsed(text: str) -> DocumentNode:
    return parse(text, no_location=True)


def variables_of(value: Any) -> dict[str, Any]:
    """The client sends a JSON *text* of them, "null" when there are none [run]; others send an object."""
    try:
        value = json.loads(value) if isinstance(value, str) and value else value
    except ValueError as error:
        raise Invalid(f"variables are no JSON: {error}") from error
    if value is not None and not isinstance(value, dict):
        raise Invalid("variables are no object")
    return value or {}


def operation(text: Any, variables: Mapping[str, Any], name: str | None = None) -> Operation:
    """The one operation of the document (or the one of this name); no fragments, no directives."""
    try:
        document = _parsed(text if isinstance(text, str) else "")
    except GraphQLError as error:
        raise Invalid(error.message) from error
    found = [each for each in document.definitions if isinstance(each, OperationDefinitionNode)]
    if len(found) != len(document.definitions):
        raise Invalid("only operations are understood here, no fragments")
    if name:
        found = [each for each in found if each.name and each.name.value == name]
    if len(found) != 1:
        raise Invalid("which operation?")
    return Operation(found[0].operation.value, _Reader(found[0], variables).fields(found[0].selection_set))


class _Reader:
    def __init__(self, definition: OperationDefinitionNode, variables: Mapping[str, Any]) -> None:
        self._values: dict[str, Any] = {}
        self._types: dict[str, str] = {}
        for each in definition.variable_definitions or ():
            name = each.variable.name.value
            self._types[name] = printed(each.type)
            if name in variables:
                self._values[name] = variables[name]
            elif each.default_value:
                self._values[name] = value_from_ast_untyped(each.default_value)
            if isinstance(each.type, NonNullTypeNode) and self._values.get(name) is None:
                raise Invalid(f'Variable "${name}" of required type "{self._types[name]}" was not provided.')
        if unknown := set(variables) - set(self._types):
            raise Invalid(f"variables that are not declared: {', '.join(sorted(unknown))}")

    def fields(self, selections: SelectionSetNode | None) -> tuple[Field, ...]:
        read = tuple(self._field(each) for each in (selections.selections if selections else ()))
        aliases = [field.alias for field in read]
        if len(set(aliases)) != len(aliases):
            raise Invalid(f"fields of one name conflict: {', '.join(aliases)}")
        return read

    def _field(self, node: Any) -> Field:
        if not isinstance(node, FieldNode) or node.directives:
            raise Invalid("only plain fields are understood here")
        arguments, declared = {}, {}
        for each in node.arguments or ():
            name = each.name.value
            if isinstance(each.value, VariableNode):
                variable = each.value.name.value
                declared[name] = self._types.get(variable, "")
                if variable in self._types and variable not in self._values:
                    continue
            self._known(each.value)
            arguments[name] = value_from_ast_untyped(each.value, self._values)
        alias = node.alias.value if node.alias else node.name.value
        return Field(node.name.value, alias, arguments, self.fields(node.selection_set), declared)

    def _known(self, node: Any) -> None:
        """Every variable that is used must be declared."""
        if isinstance(node, VariableNode) and node.name.value not in self._types:
            raise Invalid(f'Variable "${node.name.value}" is not defined.')
        for child in getattr(node, "values", None) or getattr(node, "fields", None) or ():
            self._known(getattr(child, "value", child) if hasattr(child, "name") and hasattr(child, "value") else child)
