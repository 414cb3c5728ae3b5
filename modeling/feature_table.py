"""An item table whose vectors are composed from features: heterogeneous tokens, and their pool.

Weights per item are those of its id alone; the rest is shared. An item that training has never seen has
a vector from its features, and its id token is the one that all unseen items share.

Letters: V rows of items, F tokens of an item, U distinct rows of a batch, G categories of an item.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from data.item_features import FeatureCodes, ItemFacts, ItemFeatures
from modeling.item_table import INITIAL_DEVIATION, HeldItems

CATEGORIES = "values.categories.weight"
IDS = "values.ids.weight"


class FeatureValues(nn.Module):
    """One vector per feature of an item: id, categories, each number, each content vector, in this order.

    Args:
        features: of the catalogue. Its arrays are buffers that are not saved: the catalogue says them again.
        num_buckets: of each number, without that of missing ones.
        ids, categories: whether there is a token of them.
    """

    seen_V: Tensor
    categories_VG: Tensor
    buckets_VN: Tensor

    def __init__(self, features: ItemFeatures, width: int, *, num_buckets: int, ids: bool, categories: bool) -> None:
        super().__init__()
        self.rows_per_number = num_buckets + 1
        for name in ("seen_V", "categories_VG", "buckets_VN"):
            self.register_buffer(name, torch.from_numpy(getattr(features, name)), persistent=False)
        for number, content_VP in enumerate(features.contents):
            self.register_buffer(f"content_{number}", torch.from_numpy(content_VP), persistent=False)
        num_numbers = features.buckets_VN.shape[1]
        # Row 0 of the ids is what all unseen items share, and row 0 of the categories is to have none.
        self.ids = nn.Embedding(len(features.seen_V), width) if ids else None
        self.categories = nn.Embedding(len(features.codes.category_names) + 1, width) if categories else None
        self.numbers = nn.Embedding(num_numbers * self.rows_per_number, width) if num_numbers else None
        self.contents = nn.ModuleList(
            nn.Linear(content_VP.shape[1], width, bias=False) for content_VP in features.contents
        )
        self.num_tokens = int(ids) + int(categories) + num_numbers + len(features.contents)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=INITIAL_DEVIATION)

    def forward(self, rows: Int[Tensor, "..."], told: Bool[Tensor, "..."]) -> Float[Tensor, "... F D"]:
        """The values of items.

        Args:
            told: whether an item's id may be told; that of an item without training events never is.
        """
        contents = [self.get_buffer(f"content_{number}")[rows] for number in range(len(self.contents))]
        return self._values(
            rows.where(told & self.seen_V[rows], 0), self.categories_VG[rows], self.buckets_VN[rows], contents
        )

    def of_others(self, others: ItemFeatures) -> Float[Tensor, "N F D"]:
        """The values of items that the catalogue lacks: the rows from 1 of other features, which its codes tell."""
        device = self.seen_V.device
        codes_NG = torch.from_numpy(others.categories_VG[1:]).to(device)
        buckets_NN = torch.from_numpy(others.buckets_VN[1:]).to(device)
        contents = [torch.from_numpy(content_VP[1:]).to(device) for content_VP in others.contents]
        return self._values(codes_NG.new_zeros(len(codes_NG)), codes_NG, buckets_NN, contents)

    def _values(
        self,
        ids: Int[Tensor, "..."],
        codes_G: Int[Tensor, "... G"],
        buckets_N: Int[Tensor, "... N"],
        contents: list[Float[Tensor, "... P"]],
    ) -> Float[Tensor, "... F D"]:
        values = []
        if self.ids is not None:
            values.append(self.ids(ids)[..., None, :])
        if self.categories is not None:
            counted_G = codes_G > 0
            counted_G[..., 0] |= ~counted_G.any(-1)  # without categories: row 0
            shares_G = counted_G / counted_G.sum(-1, keepdim=True)
            vectors = self.categories(codes_G)
            values.append(shares_G.to(vectors.dtype)[..., None, :] @ vectors)
        if self.numbers is not None:
            places_N = self.rows_per_number * torch.arange(buckets_N.shape[-1], device=ids.device)
            values.append(self.numbers(buckets_N + places_N))
        for layer, content in zip(self.contents, contents, strict=True):
            # DeepSpeed leaves buffers as they are under some stages, and casts them under others.
            values.append(layer(content.to(next(layer.parameters()).dtype))[..., None, :])
        return torch.cat(values, -2)


class FeaturePool(nn.Module):
    """One vector of an item's F values: their mean, and what two layers make of them side by side."""

    def __init__(self, num_tokens: int, width: int, inner_width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(num_tokens * width)
        self.layer_in = nn.Linear(num_tokens * width, inner_width)
        self.layer_out = nn.Linear(inner_width, width, bias=False)
        nn.init.normal_(self.layer_out.weight, std=INITIAL_DEVIATION * inner_width**-0.5)

    def forward(self, values: Float[Tensor, "... F D"]) -> Float[Tensor, "... D"]:
        """Pool the values of each item."""
        inner = functional.silu(self.layer_in(self.norm(values.flatten(-2))))
        pooled: Tensor = values.mean(-2) + self.layer_out(inner)
        return pooled


@dataclass(frozen=True)
class HeldFeatures:
    """The distinct items of a training batch, composed once; of each, the id is told or not throughout the batch."""

    rows_U: Int[Tensor, "U"]  # ascending
    vectors_UD: Float[Tensor, "U D"]
    tokens_UE: Float[Tensor, "U E"]  # the F tokens side by side
    num_tokens: int

    def __call__(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """The vector of each row; zero for padding."""
        return functional.embedding(torch.searchsorted(self.rows_U, rows.contiguous()), self.vectors_UD)

    def tokens(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "... F D"]:
        """The tokens of each row."""
        tokens = functional.embedding(torch.searchsorted(self.rows_U, rows.contiguous()), self.tokens_UE)
        return tokens.view(*rows.shape, self.num_tokens, -1)


class FeatureTable(nn.Module):
    """Item vectors and tokens from features. The vector of padding is zero.

    A token is the value of a feature plus a vector of its kind, which tells the tokens of an item apart
    where they stand in one sequence; the pool knows them by their places and takes the values.

    Args:
        values: the values of items.
        codes: of the same catalogue.
        pool_width: inner width of the pool.
        id_dropout: share of the items of a training batch whose id is not told.

    Source: heterogeneous token flattening of HeterRec (arXiv 2503.01469). Its equations are not published: that one
    set of tokens is both the input and, pooled, the item side of loss and index, the pool, and the dropout of
    ids by which the token of unseen items learns, are ours.
    """

    def __init__(
        self, values: FeatureValues, width: int, *, codes: FeatureCodes, pool_width: int, id_dropout: float
    ) -> None:
        super().__init__()
        self.values = values
        self.codes = codes
        self.kinds = nn.Embedding(values.num_tokens, width)
        self.pool = FeaturePool(values.num_tokens, width, pool_width)
        self.id_dropout = id_dropout
        nn.init.normal_(self.kinds.weight, std=INITIAL_DEVIATION)

    @property
    def num_rows(self) -> int:
        """Rows that have a vector, padding row 0 included."""
        return len(self.values.seen_V)

    def hold(self, *rows: Int[Tensor, "..."]) -> HeldItems:
        """In training every distinct item is composed once, ids dropped; otherwise the table itself."""
        if not self.training:
            return self
        rows_U = torch.unique(torch.cat([some.flatten() for some in rows]))
        # Drawn on the CPU: one generator then serves every device.
        told_U = (torch.rand(len(rows_U)) >= self.id_dropout).to(rows_U.device)
        values_UFD = self.values(rows_U, told_U)
        tokens_UE = (values_UFD + self._kinds()).flatten(1)
        return HeldFeatures(rows_U, self._pooled(values_UFD, rows_U), tokens_UE, self.values.num_tokens)

    def forward(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """The vector of each row, every id told that training has seen; zero for padding."""
        return self._pooled(self.values(rows, torch.ones_like(rows, dtype=torch.bool)), rows)

    def compose(self, items: Sequence[ItemFacts]) -> Float[Tensor, "N D"]:
        """Vectors of items that the catalogue lacks; what is not said of one, or has no code, counts as missing.

        Args:
            items: none with a content vector of another width than the catalogue's.
        """
        pooled: Tensor = self.pool(self.values.of_others(self.codes.of_others(items)))
        return pooled

    def knows(self, item: ItemFacts) -> bool:
        """Whether anything that is said of an item counts."""
        of_category = self.values.categories is not None and not set(item.categories).isdisjoint(
            self.codes.category_names
        )
        return of_category or bool(item.numbers.keys() & self.codes.edges or item.contents.keys() & self.codes.widths)

    def tokens(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "... F D"]:
        """The tokens of each row, every id told that training has seen."""
        values: Tensor = self.values(rows, torch.ones_like(rows, dtype=torch.bool))
        return values + self._kinds()

    def continued(self, weights: Mapping[str, Tensor], category_names: list[str]) -> dict[str, Tensor]:
        """An earlier table's weights in the shape of this one: rows by item, categories by name.

        What the earlier table lacks keeps its fresh vectors.

        Args:
            weights: by their names in the earlier table.
            category_names: of the earlier table's codes 1, 2, ...
        """
        own = self.state_dict()
        continued = dict(weights)
        if IDS in own:
            continued[IDS] = own[IDS].clone()
            continued[IDS][: len(weights[IDS])] = weights[IDS]
        if CATEGORIES in own:
            code_of = {name: code for code, name in enumerate(category_names, start=1)}
            codes = [0, *(code_of.get(name, -1) for name in self.codes.category_names)]
            codes_C = torch.tensor(codes, device=own[CATEGORIES].device)
            old_CD = weights[CATEGORIES].to(own[CATEGORIES])[codes_C.clamp(min=0)]
            continued[CATEGORIES] = torch.where(codes_C[:, None] >= 0, old_CD, own[CATEGORIES])
        return continued

    def _kinds(self) -> Float[Tensor, "F D"]:
        kinds_FD: Tensor = self.kinds(torch.arange(self.values.num_tokens, device=self.values.seen_V.device))
        return kinds_FD

    def _pooled(self, values: Float[Tensor, "... F D"], rows: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        pooled: Tensor = self.pool(values)
        return pooled * (rows > 0)[..., None].to(pooled.dtype)
