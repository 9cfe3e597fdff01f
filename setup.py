"Packaging: everything is read from settings.ini, nbdev's configuration file."
from configparser import ConfigParser
from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
s = config["DEFAULT"]

setup(
    name=s["lib_name"], version=s["version"], description=s["description"], author=s["author"], author_email=s["author_email"],
    license="Apache-2.0", url=s["git_url"], packages=find_packages(include=["t2igen", "t2igen.*"]),
    package_data={"t2igen": ["profiles/*.yaml"]}, python_requires=">=" + s["min_python"],
    install_requires=s["requirements"].split(), extras_require={"dev": s["dev_requirements"].split(), "parquet": s["parquet_requirements"].split(), "cluster": s["cluster_requirements"].split()},
    entry_points={"console_scripts": s["console_scripts"].split(), "nbdev": [f"{s['lib_name']}={s['lib_name']}._modidx:d"]},
    long_description=open("README.md", encoding="utf-8").read() if __import__("os").path.exists("README.md") else "",
    long_description_content_type="text/markdown", zip_safe=False,
)
