import torch

from whatwhere import CBAM, create_model
from whatwhere.explain import spatial_gates
from whatwhere.explain.picture import gate_figure


def test_gates_are_those_that_scale_the_features():
    torch.manual_seed(0)
    module = CBAM(8).eval()
    x = torch.randn(2, 8, 5, 6)
    gates = spatial_gates(module, x)
    assert list(gates) == [""]
    channel = CBAM(8, spatial=False)
    channel.load_state_dict({key: value for key, value in module.state_dict().items() if key.startswith("what")})
    torch.testing.assert_close(module(x), channel(x) * gates[""])


def test_one_gate_per_block_at_the_size_of_its_features():
    model = create_model("cbam_resnext11_8x8d", num_classes=10, in_channels=1).train()
    model.layer1.eval()
    gates = spatial_gates(model, torch.randn(3, 1, 16, 16))
    assert {name: tuple(gate.shape) for name, gate in gates.items()} == {
        "layer1.0.attention": (3, 1, 16, 16),
        "layer2.0.attention": (3, 1, 8, 8),
        "layer3.0.attention": (3, 1, 4, 4),
    }
    assert all(((gate > 0) & (gate < 1)).all() for gate in gates.values())
    assert model.training
    assert not model.layer1.training
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_without_spatial_gates_is_said(refused):
    with refused():
        spatial_gates(create_model("se_resnext11_8x8d"), torch.randn(2, 3, 16, 16))


def test_the_picture_has_a_row_per_image_and_a_column_per_gate(tmp_path):
    images = torch.rand(2, 1, 8, 8)
    gates = {"stage 1": torch.rand(2, 1, 8, 8), "stage 2": torch.rand(2, 1, 4, 4)}
    figure = gate_figure(images, gates, ["zero", "one"], "title")
    panels = [axis for axis in figure.axes if axis.images]
    assert len(panels) == 6
    shown = panels[1].images[0].get_array()
    assert gates["stage 1"].min() - 1e-6 <= shown.min()
    assert shown.max() <= gates["stage 1"].max() + 1e-6
    figure.savefig(tmp_path / "gates.png")
    assert (tmp_path / "gates.png").read_bytes().startswith(b"\x89PNG")
