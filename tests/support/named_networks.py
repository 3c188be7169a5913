"""`networks.create` with a spec from keyword arguments, as tests write it."""

from whatwhere.networks import NetworkSpec, create
from whatwhere.networks.factory import name_of


def create_network(name, *, pretrained=False, seed=None, attention=None, start=None, drop_rate=0.0, **options):
    model_kwargs = {**options.pop("model_kwargs", {}), **({"drop_rate": drop_rate} if drop_rate else {})}
    named = "" if attention is None else name_of(attention)
    spec = NetworkSpec(name=name, attention=named, start=start or "", model_kwargs=model_kwargs, **options)
    return create(spec, pretrained=pretrained, seed=seed, attention=attention if callable(attention) else None)
