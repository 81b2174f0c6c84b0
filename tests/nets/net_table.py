"""Every named network at the sizes people publish, with its number of parameters."""

from __future__ import annotations

PUBLISHED = [  # spec, inputs, outputs, parameters counted by hand or as published
    ("mlp:400,400", (784,), 10, 784 * 400 + 400 + 400 * 400 + 400 + 400 * 10 + 10),
    ("mlp:5", (2, 3), 1, 6 * 5 + 5 + 5 + 1),
    ("mlp:500,500,500,500,act=silu", (1, 28, 28), 10, 1_149_010),  # 2309.12095
    ("mlp:500,500,500,500,act=silu,dropout=0.2", (3, 32, 32), 10, 2_293_010),
    ("mlp:500,500,500,500,act=silu", (3, 32, 32), 100, 2_338_100),
    ("mlp:100,100", (30,), 2, 13_402),  # 2402.15978, as are the next three
    ("mlp:256", (784,), 10, 203_530),
    ("mlp:128", (64,), 10, 9_610),
    ("residual-mlp:256,256", (3, 32, 32), 10, 12_623_370),
    ("lenet300", (1, 28, 28), 10, 266_610),
    ("lenet5", (1, 28, 28), 10, 431_080),
    ("lenet5-wide", (1, 28, 28), 10, 1_071_880),
    ("lenet5", (3, 32, 32), 10, 75 * 20 + 20 + 25_050 + 1250 * 500 + 500 + 5010),
    ("lenet5", (1, 16, 17), 3, 520 + 25_050 + 50 * 500 + 500 + 1503),
    ("lenet", (1, 28, 28), 10, 61_706),  # 2309.12095
    ("lenet", (28, 28), 10, 61_706),
    ("lenet", (1, 32, 32), 10, 61_706),
    ("lenet:18,48,360,256", (3, 32, 32), 10, 550_362),
    ("lenet:18,48,360,256,dropout=0.2", (3, 32, 32), 100, 573_492),
    ("lenet:act=relu,pool=max,kernel=3", (1, 28, 28), 10, 60_170),  # 2402.15978
    ("resnet20", (3, 32, 32), 10, 269_722),  # 1512.03385: 0.27, 0.46, 0.66, 0.85, 1.7 million
    ("resnet32", (3, 32, 32), 10, 464_154),
    ("resnet44", (3, 32, 32), 10, 658_586),
    ("resnet56", (3, 32, 32), 10, 853_018),
    ("resnet110", (3, 32, 32), 10, 1_727_962),
    ("resnet20:shortcut=b,act=silu", (3, 32, 32), 10, 272_474),
    ("resnet18", (3, 224, 224), 1000, 11_689_512),  # torchvision's model page
    ("resnet18:stem=cifar", (3, 32, 32), 10, 11_173_962),
    ("resnet18:norm=fixup", (3, 32, 32), 10, 11_173_962 - 9_600 - 172_032 + 42),  # 1901.09321
    ("wrn:28,10", (3, 32, 32), 10, 36_479_194),  # 1605.07146: 36.5 million
    ("wrn:16,4", (3, 32, 32), 10, 2_748_890),  # 2.75 million
    ("wrn:16,4,norm=fixup", (3, 32, 32), 10, 2_748_890 - 2 * 1_808 + 6 * 5 + 2),
    ("vit:image=32", (1, 28, 28), 10, 3_186_954),  # 2309.12095
    ("vit:dropout=0.2", (3, 32, 32), 10, 3_195_146),
    ("vit", (3, 32, 32), 100, 3_218_276),
    (
        "vit:dim=768,depth=12,heads=12,mlp=3072,patch=16",
        (3, 224, 224),
        1000,
        86_567_656,
    ),
    ("simple-vit:dim=128,depth=1,mlp=256,patch=7", (1, 28, 28), 10, 335_360),  # 2402.15978
    ("simple-vit", (3, 32, 32), 100, 9_516_032),
    ("mixer:image=32", (1, 28, 28), 10, 1_987_722),  # 2309.12095
    ("mixer", (3, 32, 32), 10, 1_995_914),
    ("mixer", (3, 32, 32), 100, 2_019_044),
]

SMALL = [  # spec, inputs: every kind of layer there is, small enough to run many times
    ("mlp:6,5,act=silu,dropout=0.3", (4,)),
    ("residual-mlp:6,5", (2, 3)),
    ("lenet300", (2, 3)),
    ("lenet5", (1, 16, 17)),
    ("lenet5-wide", (1, 16, 16)),
    ("lenet:2,3,4,5", (1, 20, 21)),
    ("lenet:2,3,4,5,act=relu,pool=max,kernel=3,dropout=0.3", (2, 28, 28)),
    ("resnet20:width=4", (3, 9, 8)),
    ("resnet20:width=4,shortcut=b,act=silu", (8, 8)),
    ("resnet32:width=2,norm=fixup", (3, 8, 8)),
    ("resnet44:width=2", (1, 8, 8)),
    ("resnet56:width=2", (1, 8, 8)),
    ("resnet110:width=1", (1, 8, 8)),
    ("resnet18:width=4", (3, 65, 64)),
    ("resnet18:width=4,shortcut=a", (3, 8, 8)),
    ("resnet18:width=4,norm=fixup,act=gelu", (3, 9, 9)),
    ("wrn:10,1,dropout=0.3", (3, 8, 8)),
    ("wrn:10,1,norm=fixup", (3, 8, 9)),
    ("vit:dim=16,depth=2,heads=4,mlp=12,patch=4", (3, 8, 12)),
    ("vit:dim=12,depth=1,heads=2,head=5,mlp=8,patch=4,image=8,norm=none,dropout=0.2", (1, 6, 5)),
    ("simple-vit:dim=16,depth=2,heads=2,head=3,mlp=12,patch=4", (3, 8, 12)),
    ("simple-vit:dim=16,depth=1,norm=layer,patch=2,dropout=0.2", (8, 8)),
    ("mixer:dim=10,depth=2,tokens=7,mlp=9,patch=4", (3, 8, 12)),
    ("mixer:dim=8,depth=1,image=8", (1, 5, 8)),
]
