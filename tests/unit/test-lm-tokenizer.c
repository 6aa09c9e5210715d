/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tokenizer against ids that Hugging Face's tokenizers made of the same text, against the
 * pattern of GPT-2 word by word, and on files that lie.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tokenizer.h"
#include "util.h"

static char *read_file(const char *name, size_t *ret_n)
{
	char path[1024], *data;
	FILE *file;
	long n;

	(void)snprintf(path, sizeof(path), "%s/%s", getenv("SOURCE_ROOT"), name);
	file = fopen(path, "rb");
	assert_non_null(file);
	(void)fseek(file, 0, SEEK_END);
	n = ftell(file);
	rewind(file);
	data = malloc((size_t)n);
	assert_non_null(data);
	assert_int_equal(fread(data, 1, (size_t)n, file), n);
	(void)fclose(file);
	*ret_n = (size_t)n;
	return data;
}

static struct tokenizer *open_tokenizer(void)
{
	struct tokenizer *tokenizer = NULL;
	size_t n;
	char *json = read_file("examples/models/tiny-llama/tokenizer.json", &n);

	assert_int_equal(tokenizer_parse(json, n, &tokenizer), 0);
	free(json);
	return tokenizer;
}

static void test_reference_ids(void **state)
{
	struct tokenizer *tokenizer = open_tokenizer();
	size_t n_text, n_wanted, n_ids, at = 0;
	char *text = read_file("tests/data/valid-books-start.txt", &n_text);
	char *wanted = read_file("tests/data/valid-books-4097.u16", &n_wanted);
	uint32_t *ids;

	assert_int_equal(tokenizer_encode(tokenizer, text, n_text, &ids, &n_ids), 0);
	assert_in_range(n_ids, 4000, n_wanted / 2);
	for (size_t i = 0; i < n_ids; i++) {
		const char *bytes;
		uint16_t id;
		size_t n;

		memcpy(&id, wanted + 2 * i, 2);
		assert_int_equal(ids[i], id);
		bytes = tokenizer_bytes(tokenizer, ids[i], &n);
		assert_true(n <= n_text - at);
		assert_memory_equal(bytes, text + at, n);
		at += n;
	}
	assert_int_equal(at, n_text);
	array_free(ids);
	free(text);
	free(wanted);
	tokenizer_free(tokenizer);
}

static void test_words(void **state)
{
	/* made with Python's regex module and the pattern of GPT-2 */
	static const struct {
		const char *text, *words;
	} cases[] = {
		{"Hello  world", "Hello| | world"},
		{"it's we'll 'tis", "it|'s| we|'ll| '|tis"},
		{"a1b22 33", "a|1|b|22| 33"},
		{"x \n\n y", "x| \n\n| y"},
		{"end   ", "end|   "},
		{" \t", " \t"},
		{"\ta", "\t|a"},
		{"no... -- yes!", "no|...| --| yes|!"},
		{"caf\xc3\xa9 \xd0\xb4\xd0\xb0", "caf\xc3\xa9| \xd0\xb4\xd0\xb0"},
		{"a\xc2\xa0 b", "a|\xc2\xa0| b"},
		{"\xe2\x85\xa7\xc2\xbd\xe4\xb8\xad", "\xe2\x85\xa7\xc2\xbd|\xe4\xb8\xad"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		size_t n = strlen(cases[i].text), at = 0, n_joined = 0;
		char joined[128];

		while (at < n) {
			size_t word = tokenizer_word(cases[i].text + at, n - at);

			assert_in_range(word, 1, n - at);
			if (at > 0)
				joined[n_joined++] = '|';
			memcpy(joined + n_joined, cases[i].text + at, word);
			n_joined += word;
			at += word;
		}
		joined[n_joined] = 0;
		assert_string_equal(joined, cases[i].words);
	}
}

static void test_any_bytes(void **state)
{
	struct tokenizer *tokenizer = open_tokenizer();
	uint64_t random = 1;

	for (int round = 0; round < 300; round++) {
		size_t n = (size_t)round % 67, n_ids, at = 0, n_bytes;
		char *text = malloc(n ? n : 1); /* exact, so that a sanitizer sees one byte more */
		uint32_t *ids;

		assert_non_null(text);
		for (size_t i = 0; i < n; i++) {
			random = random * 6364136223846793005ULL + 1442695040888963407ULL;
			text[i] = (char)(random >> (round % 2 ? 56 : 57));
		}
		assert_int_equal(tokenizer_encode(tokenizer, text, n, &ids, &n_ids), 0);
		for (size_t i = 0; i < n_ids; i++) {
			const char *bytes = tokenizer_bytes(tokenizer, ids[i], &n_bytes);

			assert_true(n_bytes <= n - at);
			assert_memory_equal(bytes, text + at, n_bytes);
			at += n_bytes;
		}
		assert_int_equal(at, n);
		array_free(ids);
		free(text);
	}
	tokenizer_free(tokenizer);
}

static void test_added_tokens(void **state)
{
	struct tokenizer *tokenizer = open_tokenizer();
	uint32_t *ids;
	size_t n_ids, n;

	assert_int_equal(tokenizer_encode(tokenizer, "I</s>I", 6, &ids, &n_ids), 0);
	assert_int_equal(n_ids, 3);
	assert_int_equal(ids[0], 44);
	assert_int_equal(ids[1], 1);
	assert_int_equal(ids[2], 44);
	assert_string_equal(tokenizer_bytes(tokenizer, UINT32_MAX, &n), "");
	assert_int_equal(n, 0);
	array_free(ids);
	tokenizer_free(tokenizer);
}

static void test_hostile(void **state)
{
	static const char *const texts[] = {
		"",
		"{",
		"[]",
		"{}",
		"{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]},"
		"\"pre_tokenizer\":{\"type\":\"ByteLevel\"}}",
		"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":7},\"merges\":[]},"
		"\"pre_tokenizer\":{\"type\":\"ByteLevel\"}}",
		"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]},"
		"\"pre_tokenizer\":{\"type\":\"ByteLevel\"}}",
		"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":\"b\"},\"merges\":[]},"
		"\"pre_tokenizer\":{\"type\":\"ByteLevel\"}}",
		"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[1]]},"
		"\"pre_tokenizer\":{\"type\":\"ByteLevel\"}}",
		"{\"model\":{\"type\":\"WordPiece\"}}",
		"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0}},"
		"\"pre_tokenizer\":{\"type\":\"Whitespace\"}}",
	};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		struct tokenizer *tokenizer = NULL;

		assert_int_equal(tokenizer_parse(texts[i], strlen(texts[i]), &tokenizer), -EINVAL);
		assert_null(tokenizer);
		assert_string_not_equal(error_get(), "");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reference_ids), cmocka_unit_test(test_words),
		cmocka_unit_test(test_any_bytes),     cmocka_unit_test(test_added_tokens),
		cmocka_unit_test(test_hostile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
