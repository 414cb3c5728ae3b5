"""The only place that turns model settings into modules."""

from collections.abc import Sequence

import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from data.conditions import Conditions
from data.item_features import ItemFeatures
from modeling.conditioning import CONDITIONERS, Conditioning, ConditionTable
from modeling.encoder import Encoder
from modeling.esans import EsansSampler
from modeling.esans_settings import EsansNegatives
from modeling.feature_table import FeatureTable, FeatureValues
from modeling.foresight import LinearHeads, Prediction, SharedHeads
from modeling.hashed_table import HashedTable
from modeling.hstu import HstuBlock
from modeling.item_table import ItemTable, WholeTable
from modeling.negatives import EveryItem, Negatives, NegativeSampler
from modeling.objectives import BlockTable, Objectives
from modeling.retriever import Retriever
from modeling.sasrec import SasrecBlock
from modeling.settings import (
    AllNegatives,
    HashedItems,
    HstuSettings,
    InBatchNegatives,
    ItemRows,
    MixedNegatives,
    ModelSettings,
    SasrecSettings,
    TransformerSettings,
    UniformNegatives,
)
from modeling.token_level import TokenLevel
from modeling.token_settings import FeatureItems
from modeling.transformer import TransformerBlock


def build_retriever(
    settings: ModelSettings,
    *,
    num_rows: int,
    num_actions: int,
    actions: Sequence[str] = (),
    train_counts: npt.ArrayLike | None = None,
    catalogue: pa.Table | None = None,
    item_hashes: npt.ArrayLike | None = None,
    items: ItemTable | None = None,
) -> Retriever:
    """Build an untrained retriever.

    Args:
        num_rows: rows of the item table (`Vocabulary.num_rows`).
        num_actions: distinct actions of the dataset.
        actions: their names in the order of their codes; needed to train a model with objectives.
        train_counts: training events per item row; without it the retriever answers but cannot train.
        catalogue: of the dataset or artifact; needed by a model with conditions, or with items of features.
        item_hashes: of each row (`modeling.hashed_table.row_hashes`); needed for a model with hashed items.
        items: the item table; None for a new one that belongs to the model's weights.
    """
    encoder = Encoder(
        [_block(settings) for _ in range(settings.encoder.blocks - 1)],
        width=settings.width,
        max_events=settings.max_events,
        num_actions=num_actions if settings.use_actions else 0,
        dropout=settings.dropout,
        token_level=_token_level(settings, num_actions),
    )
    prediction = settings.prediction
    retriever = Retriever(
        items=_items(settings, num_rows, item_hashes, catalogue) if items is None else items,
        width=settings.width,
        encoder=encoder,
        branches=[_block(settings) for _ in range(prediction.heads if prediction.branch == "block" else 1)],
        linear_heads=_heads(settings),
        reads_times=settings.encoder.time_bias,
        prediction=Prediction(prediction.heads, prediction.hidden, prediction.gap or 0, prediction.window_seconds),
        conditioning=_conditioning(settings, catalogue),
        objectives=_objectives(settings, actions),
        sampler=None if train_counts is None else _negatives(settings, torch.as_tensor(train_counts)),
        temperature=settings.temperature,
    )
    if retriever.objectives is not None and isinstance(retriever.items, BlockTable):
        retriever.objectives.freeze(retriever.items, retriever.encoder, retriever.branches)
    return retriever


def _objectives(settings: ModelSettings, actions: Sequence[str]) -> Objectives | None:
    stated = settings.objectives
    if stated is None:
        return None
    return Objectives(
        settings.width,
        stated.blocks(settings.width),
        neurons=stated.neurons,
        experts=stated.experts,
        margin=stated.margin,
        stage=None if stated.stage is None else stated.names.index(stated.stage),
        levels=stated.levels(actions),
    )


def _items(
    settings: ModelSettings, num_rows: int, item_hashes: npt.ArrayLike | None, catalogue: pa.Table | None
) -> ItemTable:
    match settings.items:
        case ItemRows():
            if settings.objectives is not None:
                return BlockTable(num_rows, settings.objectives.blocks(settings.width))
            return WholeTable(num_rows, settings.width)
        case HashedItems() as hashed:
            assert item_hashes is not None  # callers who know of hashed items hand over the hashes
            return HashedTable(
                torch.as_tensor(item_hashes),
                settings.width,
                quotient_rows=hashed.quotient_rows,
                remainder_rows=hashed.remainder_rows,
            )
        case FeatureItems() as features:
            assert catalogue is not None  # callers who know of features hand over the catalogue
            return _feature_table(features, settings.width, catalogue)


def item_features(items: FeatureItems, catalogue: pa.Table) -> ItemFeatures:
    """What vectors of items are composed from.

    Raises:
        RecipeError: the catalogue lacks what the settings name.
    """
    return ItemFeatures.of(catalogue, numbers=items.numbers, num_buckets=items.number_buckets, contents=items.contents)


def _feature_table(items: FeatureItems, width: int, catalogue: pa.Table) -> FeatureTable:
    features = item_features(items, catalogue)
    values = FeatureValues(
        features, width, num_buckets=items.number_buckets, ids=items.ids, categories=items.categories
    )
    return FeatureTable(
        values,
        width,
        codes=features.codes,
        pool_width=items.pool_width,
        id_dropout=items.id_dropout,
    )


def _token_level(settings: ModelSettings, num_actions: int) -> TokenLevel | None:
    tokens = settings.tokens
    if tokens is None:
        return None
    blocks = [
        TransformerBlock(
            settings.width,
            heads=tokens.heads,
            feedforward_width=tokens.feedforward_width,
            gated_residuals=False,
            max_events=settings.max_events,
            dropout=settings.dropout,
            position_bias=False,
            time_bias=False,
        )
        for _ in range(tokens.blocks)
    ]
    return TokenLevel(
        blocks,
        width=settings.width,
        max_events=settings.max_events,
        fused=tokens.fused or settings.items.kind != "features",  # others have one vector of an item
        num_actions=num_actions if tokens.actions else 0,
        gaps=tokens.gaps,
        window=tokens.window,
        summary=tokens.summary,
        dropout=settings.dropout,
    )


def _heads(settings: ModelSettings) -> LinearHeads | SharedHeads | None:
    prediction = settings.prediction
    match prediction.branch:
        case "block":
            return None
        case "linear":
            return LinearHeads(settings.width, prediction.heads)
        case "shared":
            return SharedHeads(prediction.heads)


def _conditioning(settings: ModelSettings, catalogue: pa.Table | None) -> Conditioning | None:
    condition = settings.condition
    if condition is None:
        return None
    assert catalogue is not None  # callers who know of conditions hand over the catalogue
    table = ConditionTable(Conditions.of(catalogue, condition.pool_ages))
    conditioner = CONDITIONERS[condition.kind](table, settings.width)
    return Conditioning(conditioner, drop=condition.drop, last_only=condition.targets == "last")


def _block(settings: ModelSettings) -> nn.Module:
    match settings.encoder:
        case HstuSettings() as hstu:
            return HstuBlock(
                settings.width,
                heads=hstu.heads,
                query_width=hstu.query_width,
                value_width=hstu.value_width,
                max_events=settings.max_events,
                dropout=settings.dropout,
                position_bias=hstu.position_bias,
                time_bias=hstu.time_bias,
            )
        case TransformerSettings() as transformer:
            return TransformerBlock(
                settings.width,
                heads=transformer.heads,
                feedforward_width=transformer.feedforward_width,
                gated_residuals=transformer.gated_residuals,
                max_events=settings.max_events,
                dropout=settings.dropout,
                position_bias=transformer.position_bias,
                time_bias=transformer.time_bias,
            )
        case SasrecSettings() as sasrec:
            return SasrecBlock(
                settings.width,
                heads=sasrec.heads,
                max_events=settings.max_events,
                dropout=settings.dropout,
                position_bias=sasrec.position_bias,
                time_bias=sasrec.time_bias,
            )


def _negatives(settings: ModelSettings, train_counts_V: torch.Tensor) -> Negatives:
    match settings.negatives:
        case AllNegatives():
            return EveryItem(len(train_counts_V))
        case UniformNegatives() as uniform:
            return NegativeSampler(train_counts_V, num_uniform=uniform.num_uniform, num_in_batch=0)
        case InBatchNegatives() as in_batch:
            return NegativeSampler(train_counts_V, num_uniform=0, num_in_batch=in_batch.num_in_batch)
        case MixedNegatives() as mixed:
            return NegativeSampler(train_counts_V, num_uniform=mixed.num_uniform, num_in_batch=mixed.num_in_batch)
        case EsansNegatives() as esans:
            return EsansSampler(len(train_counts_V), **esans.model_dump(exclude={"kind", "clusters"}))
