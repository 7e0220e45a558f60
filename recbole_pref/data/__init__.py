"""Data: conversion, checks of files, popularity, sequences."""
