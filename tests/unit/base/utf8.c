/* What is UTF-8 and what is not. */
#include "test.h"

#include "base/utf8.h"

TEST(characters_have_their_lengths)
{
	CHECK_EQ(utf8_char_len("a"), 1);
	CHECK_EQ(utf8_char_len("\xc3\xa9"), 2);
	CHECK_EQ(utf8_char_len("\xe2\x82\xac"), 3);
	CHECK_EQ(utf8_char_len("\xf0\x9f\x98\x80"), 4);
	CHECK_EQ(utf8_char_len("\xf4\x8f\xbf\xbf"), 4);
	CHECK_EQ(utf8_char_len(""), 1);
}

TEST(others_have_none)
{
	static const char *const bad[] = {
		"\x80",
		"\xc0\x80",
		"\xc1\xbf",
		"\xe0\x9f\xbf",
		"\xed\xa0\x80",
		"\xf0\x8f\xbf\xbf",
		"\xf4\x90\x80\x80",
		"\xf5\x80\x80\x80",
		"\xff",
		"\xc3",
		"\xe2\x82",
		"\xf0\x9f\x98",
		"\xc3(",
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		CHECK_EQ(utf8_char_len(bad[i]), 0);
}
