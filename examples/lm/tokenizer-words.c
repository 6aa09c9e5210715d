/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cuts text into words by the pattern of GPT-2, which tokenizer.json means by ByteLevel:
 *
 *   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *
 * Bytes that are not UTF-8 count one by one as "other". Never reads past the end of the text.
 */
#include <stdbool.h>
#include <string.h>

#include "tokenizer.h"
#include "unicode-ranges.h"

enum class { CLASS_END, CLASS_SPACE, CLASS_LETTER, CLASS_NUMBER, CLASS_OTHER };

static bool is_in(const struct unicode_range *ranges, size_t n, uint32_t code)
{
	size_t low = 0, high = n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (code > ranges[middle].high)
			low = middle + 1;
		else
			high = middle;
	}
	return low < n && code >= ranges[low].low;
}

#define IS_IN(ranges, code) is_in(ranges, sizeof(ranges) / sizeof((ranges)[0]), code)

/* Bytes of the character at `text`, 1 for what is not UTF-8. */
static size_t decode(const uint8_t *text, size_t n_bytes, uint32_t *ret_code)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	size_t n = text[0] < 0x80	   ? 1
		   : (text[0] >> 5) == 6  ? 2
		   : (text[0] >> 4) == 14 ? 3
		   : (text[0] >> 3) == 30 ? 4
					   : 0;
	uint32_t code = text[0] & (n <= 1 ? 0x7f : 0x7f >> n);

	*ret_code = UINT32_MAX;
	if (n == 0 || n > n_bytes)
		return 1;
	for (size_t i = 1; i < n; i++) {
		if ((text[i] & 0xc0) != 0x80)
			return 1;
		code = code << 6 | (text[i] & 0x3f);
	}
	if (code < least[n] || code > 0x10ffff)
		return 1;
	*ret_code = code;
	return n;
}

static enum class class_at(const char *text, size_t n_bytes, size_t at, size_t *ret_n)
{
	uint32_t code;

	if (at >= n_bytes) {
		*ret_n = 0;
		return CLASS_END;
	}
	*ret_n = decode((const uint8_t *)text + at, n_bytes - at, &code);
	if (code < 128) {
		if ((code | 32) >= 'a' && (code | 32) <= 'z')
			return CLASS_LETTER;
		if (code >= '0' && code <= '9')
			return CLASS_NUMBER;
		return code == ' ' || (code >= 9 && code <= 13) ? CLASS_SPACE : CLASS_OTHER;
	}
	if (IS_IN(unicode_letters, code))
		return CLASS_LETTER;
	if (IS_IN(unicode_numbers, code))
		return CLASS_NUMBER;
	return IS_IN(unicode_spaces, code) ? CLASS_SPACE : CLASS_OTHER;
}

static size_t contraction(const char *text, size_t n_bytes)
{
	static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};

	for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
		size_t n = strlen(endings[i]);

		if (n <= n_bytes && memcmp(text, endings[i], n) == 0)
			return n;
	}
	return 0;
}

size_t tokenizer_word(const char *text, size_t n_bytes)
{
	size_t at = contraction(text, n_bytes), n, last = 0;
	enum class first;

	if (at > 0 || n_bytes == 0)
		return at;
	if (text[0] == ' ') {
		first = class_at(text, n_bytes, 1, &n);
		if (first != CLASS_SPACE && first != CLASS_END)
			at = 1;
	}
	first = class_at(text, n_bytes, at, &n);
	while (n > 0 && class_at(text, n_bytes, at, &n) == first) {
		if (n == 0)
			break;
		last = at;
		at += n;
	}
	/* A run of spaces leaves its last one to the word that follows. */
	if (first == CLASS_SPACE && at < n_bytes && last > 0)
		return last;
	return at;
}
